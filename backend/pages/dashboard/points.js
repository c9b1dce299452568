// Points on a canvas: by three.js, or where a browser has no WebGL by its plain context; and which point lies under the mouse.

const DISC_PX = 64;
const SMALLEST_PX = 1.5; // of the screen: smaller points are hardly seen

/**
 * A painter for the canvas, all its arrays of n points: `place(x, y)` says where they lie, `colour(rgba, order, layers)` how they
 * look: `order` are their indices from the lowest to the highest, `layers` how many at a time are of which size. `paint` paints
 * as seen through `transform`, d3's zoom, with `spread` CSS pixels from 0 to 1; `dotSize` are the CSS pixels of size 1.
 */
export async function painterFor(canvas) {
  const gl = canvas.getContext("webgl2", { antialias: false, depth: false, stencil: false });
  if (!gl) return plainPainter(canvas.getContext("2d"));
  const three = await import("../vendor/three/three.min.js").catch((error) => {
    console.error(error);
    throw new Error("What draws the map did not load; reload the page.");
  });
  return threePainter(three, canvas, gl);
}

/** Pixels of the screen to one of CSS; more than two would not be seen, and have to be painted. */
const density = () => Math.min(2, window.devicePixelRatio || 1);

function threePainter(three, canvas, context) {
  // Colours go to the screen as the style sheet has them.
  three.ColorManagement.enabled = false;
  const renderer = new three.WebGLRenderer({ canvas, context, alpha: true });
  renderer.outputColorSpace = three.LinearSRGBColorSpace;
  const camera = new three.OrthographicCamera();
  [camera.near, camera.far] = [-1, 1];
  const points = new three.Points(new three.BufferGeometry(), []);
  points.frustumCulled = false;
  const scene = new three.Scene().add(points);
  const look = { alphaMap: new three.CanvasTexture(drawDisc()), vertexColors: true, transparent: true, sizeAttenuation: false, depthTest: false, depthWrite: false };
  const materials = []; // one a layer, for a size
  let sizes = [];
  let shown = {};
  return {
    isPlain: false,
    place(x, y) {
      const n = x.length;
      const geometry = new three.BufferGeometry();
      const position = new Float32Array(3 * n);
      for (let i = 0; i < n; i++) {
        position[3 * i] = x[i];
        position[3 * i + 1] = y[i];
      }
      geometry.setAttribute("position", new three.BufferAttribute(position, 3));
      geometry.setAttribute("color", new three.BufferAttribute(new Uint8Array(4 * n), 4, true));
      geometry.setIndex(new three.BufferAttribute(new Uint32Array(n), 1));
      points.geometry.dispose();
      points.geometry = geometry;
    },
    colour(rgba, order, layers) {
      const { geometry } = points;
      for (const [attribute, content] of [[geometry.attributes.color, rgba], [geometry.index, order]]) {
        attribute.array.set(content);
        attribute.needsUpdate = true;
      }
      geometry.clearGroups();
      let start = 0;
      sizes = layers.map(({ size }) => size);
      points.material = layers.map(({ n }, layer) => {
        geometry.addGroup(start, n, layer);
        start += n;
        return (materials[layer] ??= new three.PointsMaterial(look));
      });
    },
    paint({ box, spread, transform, dotSize }) {
      const scale = density();
      if (box.width !== shown.width || box.height !== shown.height || scale !== shown.scale) {
        shown = { ...box, scale };
        renderer.setPixelRatio(scale);
        renderer.setSize(box.width, box.height, false);
      }
      camera.left = (transform.invertX(0) - box.width / 2) / spread.x;
      camera.right = (transform.invertX(box.width) - box.width / 2) / spread.x;
      camera.top = (box.height / 2 - transform.invertY(0)) / spread.y;
      camera.bottom = (box.height / 2 - transform.invertY(box.height)) / spread.y;
      camera.updateProjectionMatrix();
      sizes.forEach((size, layer) => {
        materials[layer].size = Math.max(SMALLEST_PX / scale, size * dotSize);
      });
      renderer.render(scene, camera);
    },
  };
}

/** White where a point is painted, black around. */
function drawDisc() {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = DISC_PX;
  const context = canvas.getContext("2d");
  context.fillRect(0, 0, DISC_PX, DISC_PX);
  context.fillStyle = "white";
  context.arc(DISC_PX / 2, DISC_PX / 2, DISC_PX / 2 - 1, 0, 2 * Math.PI);
  context.fill();
  return canvas;
}

function plainPainter(context) {
  let points = { x: [], y: [] };
  let looks = null;
  return {
    isPlain: true,
    place(x, y) {
      points = { x, y };
    },
    colour(rgba, order, layers) {
      looks = { rgba, order, layers };
    },
    paint({ box, spread, transform, dotSize }) {
      const { canvas } = context;
      const scale = density();
      const [width, height] = [Math.round(box.width * scale), Math.round(box.height * scale)];
      if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
      context.clearRect(0, 0, width, height);
      let last = "";
      let start = 0;
      for (const { n, size } of looks?.layers || []) {
        const side = Math.max(SMALLEST_PX, size * dotSize * scale);
        for (const i of looks.order.subarray(start, (start += n))) {
          const px = scale * transform.applyX(box.width / 2 + points.x[i] * spread.x);
          const py = scale * transform.applyY(box.height / 2 - points.y[i] * spread.y);
          if (px < -side || py < -side || px > width + side || py > height + side) continue;
          const [r, g, b, a] = looks.rgba.subarray(4 * i, 4 * i + 4);
          const style = `rgba(${r},${g},${b},${a / 255})`;
          if (style !== last) context.fillStyle = last = style;
          context.fillRect(px - side / 2, py - side / 2, side, side);
        }
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
