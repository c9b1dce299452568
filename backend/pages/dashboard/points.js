// Points on a canvas: by WebGL 2, or where a browser has none by its plain context; and which point lies under the mouse.

const VERTEX = `#version 300 es
in vec2 position; in vec4 colour; in float size;
uniform vec2 scale; uniform vec2 shift; uniform float dot_size;
out vec4 paint; out float edge;
void main() {
  gl_Position = vec4(position * scale + shift, 0.0, 1.0);
  gl_PointSize = max(1.5, size * dot_size);
  paint = colour;
  edge = 1.0 / gl_PointSize;
}`;
const FRAGMENT = `#version 300 es
precision mediump float;
in vec4 paint; in float edge;
out vec4 result;
void main() {
  float alpha = paint.a * smoothstep(0.5, 0.5 - 1.5 * edge, length(gl_PointCoord - 0.5));
  result = vec4(paint.rgb * alpha, alpha);
}`;

/**
 * A painter for the canvas: `place(x, y)`, `colour(rgba, sizes, order)` give it what to paint, all arrays of n points,
 * `paint({scale, shift, dotSize})` paints; clip coordinates are position·scale + shift.
 */
export function painterFor(canvas) {
  const gl = canvas.getContext("webgl2", { antialias: false, premultipliedAlpha: true });
  return gl ? glPainter(gl) : plainPainter(canvas.getContext("2d"));
}

function glPainter(gl) {
  const program = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS) && !gl.isContextLost()) throw new Error(`The map cannot be drawn: ${gl.getProgramInfoLog(program)}`);
  gl.useProgram(program);
  gl.enable(gl.BLEND);
  gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
  const uniform = (name) => gl.getUniformLocation(program, name);
  const [scale, shift, dotSize] = ["scale", "shift", "dot_size"].map(uniform);
  const attribute = (name, n, type, isNormalized) => {
    const buffer = gl.createBuffer();
    const where = gl.getAttribLocation(program, name);
    return (content) => {
      gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
      gl.bufferData(gl.ARRAY_BUFFER, content, gl.STATIC_DRAW);
      gl.enableVertexAttribArray(where);
      gl.vertexAttribPointer(where, n, type, isNormalized, 0, 0);
    };
  };
  const setPositions = attribute("position", 2, gl.FLOAT, false);
  const setColours = attribute("colour", 4, gl.UNSIGNED_BYTE, true);
  const setSizes = attribute("size", 1, gl.FLOAT, false);
  const indices = gl.createBuffer();
  let n = 0;
  return {
    isPlain: false,
    place(x, y) {
      n = x.length;
      const both = new Float32Array(2 * n);
      for (let i = 0; i < n; i++) {
        both[2 * i] = x[i];
        both[2 * i + 1] = y[i];
      }
      setPositions(both);
    },
    colour(rgba, sizes, order) {
      setColours(rgba);
      setSizes(sizes);
      gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, indices);
      gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, order, gl.STATIC_DRAW);
    },
    paint(view) {
      gl.viewport(0, 0, gl.drawingBufferWidth, gl.drawingBufferHeight);
      gl.clearColor(0, 0, 0, 0);
      gl.clear(gl.COLOR_BUFFER_BIT);
      gl.uniform2fv(scale, view.scale);
      gl.uniform2fv(shift, view.shift);
      gl.uniform1f(dotSize, view.dotSize);
      if (n) gl.drawElements(gl.POINTS, n, gl.UNSIGNED_INT, 0);
    },
  };
}

function plainPainter(context) {
  let points = { x: [], y: [] };
  let looks = null;
  return {
    isPlain: true,
    place(x, y) {
      points = { x, y };
    },
    colour(rgba, sizes, order) {
      looks = { rgba, sizes, order };
    },
    paint({ scale, shift, dotSize }) {
      const { width, height } = context.canvas;
      context.clearRect(0, 0, width, height);
      let last = "";
      for (const i of looks?.order || []) {
        const px = ((points.x[i] * scale[0] + shift[0] + 1) / 2) * width;
        const py = ((1 - points.y[i] * scale[1] - shift[1]) / 2) * height;
        if (px < -9 || py < -9 || px > width + 9 || py > height + 9) continue;
        const [r, g, b, a] = looks.rgba.subarray(4 * i, 4 * i + 4);
        const style = `rgba(${r},${g},${b},${a / 255})`;
        if (style !== last) context.fillStyle = last = style;
        const size = Math.max(1.5, looks.sizes[i] * dotSize);
        context.fillRect(px - size / 2, py - size / 2, size, size);
      }
    },
  };
}

/** The points by cells of a square grid over −1..1: which is nearest to a place is found among a few. */
export class Grid {
  constructor(x, y) {
    this.x = x;
    this.y = y;
    this.side = Math.max(1, Math.min(512, Math.ceil(Math.sqrt(x.length / 2))));
    this.starts = new Uint32Array(this.side * this.side + 1);
    for (let i = 0; i < x.length; i++) this.starts[this.cell(x[i], y[i]) + 1]++;
    for (let c = 0; c < this.side * this.side; c++) this.starts[c + 1] += this.starts[c];
    this.members = new Uint32Array(x.length);
    const next = this.starts.slice();
    for (let i = 0; i < x.length; i++) this.members[next[this.cell(x[i], y[i])]++] = i;
  }

  step(value) {
    return Math.max(0, Math.min(this.side - 1, Math.floor(((value + 1) / 2) * this.side)));
  }

  cell(x, y) {
    return this.step(y) * this.side + this.step(x);
  }

  /** Index of the point nearest to (x, y) within the radii, measured as their share; -1 if there is none. */
  nearest(x, y, radiusX, radiusY) {
    let best = -1;
    let least = 1;
    for (let row = this.step(y - radiusY); row <= this.step(y + radiusY); row++) {
      const first = this.starts[row * this.side + this.step(x - radiusX)];
      const end = this.starts[row * this.side + this.step(x + radiusX) + 1];
      for (let m = first; m < end; m++) {
        const i = this.members[m];
        const distance = ((this.x[i] - x) / radiusX) ** 2 + ((this.y[i] - y) / radiusY) ** 2;
        if (distance <= least) {
          least = distance;
          best = i;
        }
      }
    }
    return best;
  }
}
