// The map: every image as a point.

import { h, outward, patch, webAddress } from "./dom.js";
import { thumbnail } from "./parts.js";
import { Grid, painterFor } from "./points.js";
import { ASK_AGAIN_MS, ask } from "./service.js";
import { count, counted, percent, told } from "./words.js";

const NONE = 65535;
const MOST_IN_TABLE = 100;
const MOST_IN_LEGEND = 24;
const REACH_PX = 14;
const REST_MS = 120; // a mouse on its way across asks for no pictures
const MODES = { label: "Label", prediction: "Prediction", uncertainty: "Uncertainty", queue: "Queue place" };

/** The points of the answer to /map, each field an array over the same bytes. Throws where it is none. */
export function parseMap(buffer) {
  const bytes = new DataView(buffer);
  const magic = String.fromCharCode(...new Uint8Array(buffer, 0, Math.min(4, buffer.byteLength)));
  if (magic !== "ALM1") throw new Error("The map is of a form that this page does not know; reload the page.");
  const [n, m] = [bytes.getUint32(4, true), bytes.getUint32(8, true)];
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 12, m)));
  let at = Math.ceil((12 + m) / 4) * 4;
  const take = (Kind) => {
    const field = new Kind(buffer, at, n);
    at += n * Kind.BYTES_PER_ELEMENT;
    return field;
  };
  return { ...header, n, x: take(Float32Array), y: take(Float32Array), taskId: take(Uint32Array), label: take(Uint16Array),
    prediction: take(Uint16Array), place: take(Uint16Array), uncertainty: take(Uint8Array) };
}

/** Shows the map of a project in `part`; `update(board)` tells it of changes. */
export function showMap(part, project, firstBoard) {
  const { d3 } = window;
  let board = firstBoard;
  let points = null;
  let grid = null;
  let etag = null;
  let wanted = null; // model version of the last request
  let mode = "prediction";
  let modeChosen = false;
  let only = new Set(); // classes that are shown alone
  let transform = d3.zoomIdentity;
  let hovered = -1;
  let resting = null;

  const canvas = h("canvas", { tabindex: "0", role: "application", "aria-label": "Map of all images", "aria-describedby": "map-help" });
  const ring = h("span", { class: "ring", hidden: true });
  const tip = h("div", { class: "map-tip", hidden: true });
  const notice = h("p", { class: "map-notice", role: "status" }, "Loading the map …");
  const stage = h("div", { class: "stage" }, canvas, ring, tip, notice);
  const legend = h("div", { class: "keys map-keys" });
  const chooser = h("select", { id: "map-mode" }, Object.entries(MODES).map(([value, name]) => h("option", { value }, name)));
  const zoomButton = (text, label, act) => {
    const button = h("button", { type: "button", class: "button square", "aria-label": label, title: label }, text);
    button.addEventListener("click", act);
    return button;
  };
  const table = h("div", { class: "scroll-x", tabindex: "0", role: "region", "aria-label": "Images in view" });
  const summary = h("summary", {}, "Show the images in view as a table");
  const details = h("details", { class: "as-table" }, summary, table);
  part.replaceChildren(h("div", { class: "map-own", "data-own": true },
    h("div", { class: "map-tools" }, h("label", { for: "map-mode" }, "Colour by "), chooser,
      h("span", { class: "map-zoom" }, zoomButton("+", "Zoom in", () => zoomBy(1.6)), zoomButton("−", "Zoom out", () => zoomBy(1 / 1.6)),
        zoomButton("⤢", "Show all", () => selection.call(zoom.transform, d3.zoomIdentity)))),
    legend, stage,
    h("p", { id: "map-help", class: "quiet small" }, "Drag to move. Wheel with Ctrl or ⌘, or two fingers, to zoom. A click opens the task in Label Studio. Keys: arrows, + and −, 0 for all."),
    details));

  const coming = painterFor(canvas); // while the points are asked for
  let painter = null;
  let isHopeless = false; // without a painter the points need not be asked for again
  coming.catch(() => {
    isHopeless = true;
  });
  let isLost = false; // the browser has taken the graphics context away
  canvas.addEventListener("webglcontextlost", () => {
    isLost = true;
    tellNotice();
  });
  canvas.addEventListener("webglcontextrestored", () => {
    isLost = false;
    tellNotice();
    repaint();
  });

  // -- view -----------------------------------------------------------------------------------------------------------

  const size = () => ({ width: canvas.clientWidth || 1, height: canvas.clientHeight || 1 });
  const spread = ({ width, height }) => ({ x: (Math.min(width, height * 1.7) / 2) * 0.94, y: (height / 2) * 0.94 });
  const toScreen = (i) => {
    const box = size();
    const s = spread(box);
    return transform.apply([box.width / 2 + points.x[i] * s.x, box.height / 2 - points.y[i] * s.y]);
  };
  const toData = ([px, py]) => {
    const box = size();
    const s = spread(box);
    const [x, y] = transform.invert([px, py]);
    return [(x - box.width / 2) / s.x, (box.height / 2 - y) / s.y];
  };

  let isDirty = false;
  function repaint() {
    if (isDirty || !painter || isLost) return;
    isDirty = true;
    requestAnimationFrame(() => {
      isDirty = false;
      const box = size();
      painter.paint({ box, spread: spread(box), transform, dotSize: Math.min(13, Math.max(2.2, (27 / (points?.n || 1) ** 0.2) * transform.k ** 0.3)) });
      placeRing();
      performance.mark("map-painted");
    });
  }

  const zoom = d3.zoom().scaleExtent([0.6, 400]).filter((event) => {
    if (event.type === "wheel") return event.ctrlKey || event.metaKey || document.activeElement === canvas;
    if (event.type.startsWith("touch")) return event.touches.length > 1;
    return !event.button && event.type !== "dblclick";
  }).on("zoom", (event) => {
    transform = event.transform;
    repaint();
    tellView();
  });
  const selection = d3.select(canvas).call(zoom);
  const zoomBy = (factor) => selection.call(zoom.scaleBy, factor);

  canvas.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] }[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (move) selection.call(zoom.translateBy, move[0] / transform.k, move[1] / transform.k);
    else if (event.key === "+" || event.key === "=") zoomBy(1.6);
    else if (event.key === "-") zoomBy(1 / 1.6);
    else if (event.key === "0") selection.call(zoom.transform, d3.zoomIdentity);
    else if (event.key === "Escape") hover(-1);
    else return;
    event.preventDefault();
  });
  new ResizeObserver(repaint).observe(stage);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => recolour());

  // -- colours --------------------------------------------------------------------------------------------------------

  const css = (name) => getComputedStyle(stage).getPropertyValue(name).trim();
  const rgb = (text) => {
    const colour = d3.rgb(text);
    return (Math.round(colour.b) << 16) | (Math.round(colour.g) << 8) | Math.round(colour.r);
  };
  const classColour = (index) => (points.classes.length <= 10 ? css(`--c${index}`) : d3.hsl((index * 137.5) % 360, 0.62, index % 2 ? 0.46 : 0.6).formatRgb());

  function recolour() {
    if (!points) return;
    const { n } = points;
    const looks = new Uint32Array(n); // alpha, blue, green, red, from the highest byte on
    const rank = new Uint8Array(n); // 0 to 3: what is painted later lies above
    const palette = points.classes.map((_, index) => rgb(classColour(index)));
    const rest = rgb(css("--rest"));
    const ramp = Array.from({ length: 256 }, (_, i) => rgb(d3.interpolateRgb(css("--sure"), css("--unsure"))(i / 255)));
    const first = rgb(css("--unsure"));
    for (let i = 0; i < n; i++) {
      const owner = mode === "label" ? points.label[i] : points.prediction[i];
      let [colour, alpha] = [rest, 90];
      if ((mode === "label" || mode === "prediction") && owner !== NONE) {
        [colour, alpha, rank[i]] = [palette[owner] || rest, mode === "label" ? 255 : 190, 1];
      } else if (mode === "uncertainty") [colour, alpha, rank[i]] = [ramp[points.uncertainty[i]], 200, points.uncertainty[i] >> 6];
      else if (mode === "queue" && points.place[i] !== NONE) [colour, alpha, rank[i]] = [first, 255, 3];
      if (only.size && !only.has(owner)) [alpha, rank[i]] = [18, 0];
      looks[i] = (alpha << 24) | colour;
    }
    const order = new Uint32Array(n);
    const layers = [{ size: 1 }, { size: mode === "label" ? 1.5 : 1 }, { size: 1 }, { size: mode === "queue" ? 1.9 : 1 }];
    let at = 0;
    for (let r = 0; r < 4; r++) {
      const start = at;
      for (let i = 0; i < n; i++) if (rank[i] === r) order[at++] = i;
      layers[r].n = at - start;
    }
    painter.colour(new Uint8Array(looks.buffer), order, layers);
    repaint();
    tellLegend();
  }

  function tellLegend() {
    const isByClass = mode === "label" || mode === "prediction";
    const field = mode === "label" ? points.label : points.prediction;
    if (isByClass) {
      const counts = new Uint32Array(points.classes.length);
      let others = 0;
      for (const owner of field) if (owner === NONE) others++; else counts[owner]++;
      patch(legend, points.classes.slice(0, MOST_IN_LEGEND).map((name, index) => h("button", { type: "button", class: "key", "data-key": `class-${index}`, "data-class": index, "aria-pressed": String(only.has(index)), title: `Show ${name} alone` },
        h("span", { class: "swatch round", style: { background: classColour(index) } }), name, h("span", { class: "quiet" }, ` ${count(counts[index])}`))),
      points.classes.length > MOST_IN_LEGEND ? h("span", { class: "quiet" }, `and ${points.classes.length - MOST_IN_LEGEND} more`) : null,
      others ? h("span", { class: "key" }, h("span", { class: "swatch round rest" }), mode === "label" ? "no label" : "no prediction", h("span", { class: "quiet" }, ` ${count(others)}`)) : null);
    } else if (mode === "uncertainty") patch(legend, h("span", { class: "key" }, "sure", h("span", { class: "ramp" }), "unsure"));
    else patch(legend, h("span", { class: "key" }, h("span", { class: "swatch round first" }), "next to label"), h("span", { class: "key" }, h("span", { class: "swatch round rest" }), "others"));
  }

  chooser.addEventListener("change", () => {
    [mode, modeChosen, only] = [chooser.value, true, new Set()];
    if (points) tellColours();
    recolour();
    tellView();
  });
  legend.addEventListener("click", (event) => {
    const key = event.target.closest("button[data-class]");
    if (!key) return;
    const index = Number(key.dataset.class);
    if (!only.delete(index)) only.add(index);
    recolour();
    tellView();
  });

  // -- one point ------------------------------------------------------------------------------------------------------

  const nameOf = (index) => (index === NONE ? null : points.classes[index] ?? `class ${index}`);
  const taskLink = (taskId) => {
    const [prefix] = String(board.project.link || "").match(/^.*?\/projects\/\d+/) || [];
    return prefix ? webAddress(`${prefix}/data?task=${taskId}`) : null;
  };

  function pointAt(event) {
    if (!points) return -1;
    const [x, y] = toData(d3.pointer(event, canvas));
    const s = spread(size());
    return grid.nearest(x, y, REACH_PX / (s.x * transform.k), REACH_PX / (s.y * transform.k));
  }

  function hover(i, withLink = false) {
    if (i === hovered && !withLink) return;
    hovered = i;
    clearTimeout(resting);
    tip.hidden = ring.hidden = i < 0;
    stage.classList.toggle("on-point", i >= 0);
    if (i < 0) return;
    const taskId = points.taskId[i];
    const [label, prediction] = [nameOf(points.label[i]), nameOf(points.prediction[i])];
    const place = points.place[i];
    tip.classList.toggle("with-link", withLink);
    const picture = h("span", { class: "thumb" });
    resting = setTimeout(() => picture.replaceWith(thumbnail(`/api/projects/${project}/tasks/${taskId}/thumbnail`, taskId, { loading: "eager" })), REST_MS);
    tip.replaceChildren(picture,
      h("span", { class: "tip-text" }, h("b", {}, `Task ${taskId}`), h("span", {}, label ? `labeled ${label}` : "no label yet"),
        prediction && h("span", {}, `predicted ${prediction}, uncertainty ${percent(points.uncertainty[i] / 255)}`),
        place !== NONE && h("span", {}, place === 1 ? "next to label" : `place ${count(place)} in the queue`),
        withLink && outward(taskLink(taskId), {}, "Open in Label Studio")));
    placeRing();
  }

  function placeRing() {
    if (hovered < 0 || !points) return;
    const [x, y] = toScreen(hovered);
    const box = size();
    ring.style.translate = `${x}px ${y}px`;
    const [w, hgt] = [tip.offsetWidth, tip.offsetHeight];
    tip.style.translate = `${Math.max(4, Math.min(box.width - w - 4, x + 14 + w > box.width ? x - w - 14 : x + 14))}px ${Math.max(4, Math.min(box.height - hgt - 4, y - hgt / 2))}px`;
  }

  canvas.addEventListener("pointermove", (event) => event.pointerType === "mouse" && !event.buttons && hover(pointAt(event)));
  canvas.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hover(-1));
  let lastPointer = "mouse";
  canvas.addEventListener("pointerdown", (event) => {
    lastPointer = event.pointerType;
  });
  canvas.addEventListener("click", (event) => {
    const i = pointAt(event);
    const address = i < 0 ? null : taskLink(points.taskId[i]);
    if (lastPointer !== "mouse") hover(i, i >= 0); // a finger sees first what it would open
    else if (address) window.open(address, "_blank", "noopener,noreferrer");
    else canvas.focus({ preventScroll: true });
  });

  // -- the same as text -----------------------------------------------------------------------------------------------

  let telling = null;
  function tellView() {
    clearTimeout(telling);
    if (details.open) telling = setTimeout(tellTable, 200);
  }
  details.addEventListener("toggle", () => details.open && tellTable());

  function tellTable() {
    if (!points) return;
    const [[left, top], [right, bottom]] = [toData([0, 0]), toData([size().width, size().height])];
    const field = mode === "label" ? points.label : points.prediction;
    const found = [];
    for (let i = 0; i < points.n; i++) {
      if (points.x[i] >= left && points.x[i] <= right && points.y[i] <= top && points.y[i] >= bottom && (!only.size || only.has(field[i]))) found.push(i);
    }
    found.sort((a, b) => points.place[a] - points.place[b] || points.uncertainty[b] - points.uncertainty[a] || points.taskId[a] - points.taskId[b]);
    patch(table, h("p", { class: "quiet" }, `${counted(found.length, "image")} in view` + (found.length > MOST_IN_TABLE ? `; the first ${MOST_IN_TABLE} by queue place and uncertainty:` : ":")),
      h("table", {}, h("thead", {}, h("tr", {}, ["Task", "Label", "Prediction", "Uncertainty", "Queue place"].map((name) => h("th", { scope: "col" }, name)))),
        h("tbody", {}, found.slice(0, MOST_IN_TABLE).map((i) => h("tr", { "data-key": `t${points.taskId[i]}` },
          h("th", { scope: "row" }, outward(taskLink(points.taskId[i]), {}, `Task ${points.taskId[i]}`)), h("td", {}, nameOf(points.label[i]) ?? "–"), h("td", {}, nameOf(points.prediction[i]) ?? "–"),
          h("td", { class: "number" }, percent(points.uncertainty[i] / 255)), h("td", { class: "number" }, points.place[i] === NONE ? "–" : count(points.place[i])))))));
  }

  // -- asking ---------------------------------------------------------------------------------------------------------

  let isAsking = false;
  let isSeen = true;
  let again = null;
  // What is shown of a version just published is of the one before, until it is evaluated a moment later.
  const isOld = () => [wanted, points?.model_version].some((version) => version !== board.status.model_version);

  async function load() {
    if (isAsking || isHopeless) return;
    isAsking = true;
    wanted = board.status.model_version;
    clearTimeout(again);
    try {
      const answer = await ask(`/api/projects/${project}/map`, { headers: { Accept: "application/octet-stream", ...(etag ? { "If-None-Match": etag } : {}) } });
      if (answer.status !== 304) {
        const found = parseMap(await answer.arrayBuffer());
        painter ??= await coming;
        etag = answer.headers.get("ETag");
        take(found);
      }
      if (!points || points.state === "being made") again = setTimeout(load, ASK_AGAIN_MS);
    } catch (error) {
      if (!points?.n) notice.textContent = error.message;
      again = setTimeout(load, ASK_AGAIN_MS);
    }
    isAsking = false;
    if (wanted !== board.status.model_version) load();
  }

  function take(found) {
    const task = hovered >= 0 ? points.taskId[hovered] : -1;
    points = found;
    grid = new Grid(points.x, points.y);
    hovered = task < 0 ? -1 : points.taskId.indexOf(task);
    tip.hidden = ring.hidden = hovered < 0;
    tellNotice();
    part.classList.toggle("empty-map", !points.n);
    if (!modeChosen) {
      mode = points.prediction.some((owner) => owner !== NONE) ? "prediction" : points.place.some((place) => place !== NONE) ? "queue" : "label";
      chooser.value = mode;
    }
    tellColours();
    painter.place(points.x, points.y);
    recolour();
    tellView();
    performance.mark("map-ready");
  }

  function tellColours() {
    canvas.setAttribute("aria-label", `Map of ${counted(points.n, "image")}, coloured by ${MODES[mode].toLowerCase()}`);
  }

  function tellNotice() {
    notice.textContent = isLost ? "The browser has stopped drawing the map; it goes on by itself once the graphics are there again."
      : points && !points.n ? told(points.note) || "The map comes once all images are embedded; that begins by itself."
        : [told(points?.note), painter?.isPlain && "This browser draws without WebGL: with many images the map moves slowly."].filter(Boolean).join(" ");
    notice.hidden = !notice.textContent;
  }

  new IntersectionObserver((entries) => {
    isSeen = entries.at(-1).isIntersecting;
    if (isSeen && isOld()) load();
  }, { rootMargin: "400px" }).observe(stage);
  load();
  return {
    update(newBoard) {
      board = newBoard;
      if (isSeen && isOld()) load();
    },
  };
}
