// The charts, by Observable Plot. Each has a caption that says the same in words, and a table behind it.

import { h, patch } from "./dom.js";
import { nothingYet } from "./parts.js";
import { count, counted, percent, told } from "./words.js";

const CLASS = "chart"; // the pages' Content-Security-Policy knows Plot's style sheet for this class, see dashboard_pages.py
const MOST_BARS = 24;
const MOST_NAMED = 14;

let loading = null;

/** d3 and Plot, which are only loaded once there is something to draw. */
export function loadLibraries() {
  loading ??= ["../vendor/d3/d3.min.js", "../vendor/plot/plot.umd.min.js"].reduce(
    (before, path) => before.then(() => new Promise((resolve, reject) => {
      const script = h("script", { src: new URL(path, import.meta.url).href });
      script.addEventListener("load", resolve);
      script.addEventListener("error", () => reject(new Error("The charts' library did not load; reload the page.")));
      document.head.append(script);
    })),
    Promise.resolve(),
  );
  return loading;
}

/**
 * Draws into `part`: the chart that `draw(width)` makes, a caption, and a table of `columns` and `rows`.
 * The chart is drawn anew when the width changes.
 */
async function show(part, { caption, legend = null, draw, columns, rows }) {
  const width = () => Math.max(240, Math.floor(part.clientWidth));
  patch(part, h("figure", { class: "chart-figure", "data-key": "figure" },
    h("div", { class: "slot", "data-own": true, "data-key": "slot" }), legend, h("figcaption", {}, caption)),
  h("details", { class: "as-table", "data-key": "table" }, h("summary", {}, "Show as table"),
    h("div", { class: "scroll-x", tabindex: "0", role: "region", "aria-label": `Table of ${part.id}` }, h("table", {},
      h("thead", {}, h("tr", {}, columns.map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell, column) =>
        column === 0 ? h("th", { scope: "row" }, String(cell)) : h("td", { class: "number" }, String(cell))))))))));
  await loadLibraries();
  const slot = part.querySelector(".slot");
  const redraw = () => {
    part.drawnAt = width();
    const chart = draw(part.drawnAt);
    chart.setAttribute("role", "img");
    chart.setAttribute("aria-label", typeof caption === "string" ? caption : caption.textContent);
    // It is one picture: what Plot says of its marks would be said of groups, which have no names.
    for (const group of chart.querySelectorAll("g")) for (const name of ["aria-label", "aria-description"]) group.removeAttribute(name);
    slot.replaceChildren(chart);
  };
  part.redraw = redraw;
  redraw();
  part.observer ??= new ResizeObserver(() => Math.abs(width() - part.drawnAt) > 2 && part.redraw?.());
  part.observer.observe(part);
}

function showNothing(part, ...words) {
  part.redraw = null;
  patch(part, nothingYet(...words));
}

const swatch = (kind, text) => h("span", { class: "key" }, h("span", { class: `swatch ${kind}` }), text);

// -- accuracy against labels ------------------------------------------------------------------------------------------

const KIND_WORDS = { measured: "measured", expected: "expected (estimate)" };

export async function curve(part, { curve: { target, points, random, random_note: randomNote } }) {
  const drawn = points.filter((point) => Number.isFinite(point.accuracy));
  if (!drawn.length) {
    showNothing(part, "The curve begins with the first model: once labels of two classes are there, every version adds a point.",
      target ? ` The target is ${percent(target)}.` : "");
    return;
  }
  const kinds = ["expected", "measured"].filter((kind) => drawn.some((point) => point.kind === kind));
  const last = drawn.filter((point) => point.kind === kinds.at(-1)).at(-1);
  const hasBand = drawn.some((point) => point.interval);
  const caption = `With ${counted(last.labels_used, "label")} the ${last.kind} accuracy is ${percent(last.accuracy, 1)}` +
    (last.interval ? `, between ${percent(last.interval[0], 1)} and ${percent(last.interval[1], 1)}` : "") +
    (target ? `; the target is ${percent(target)}.` : ".") + (randomNote ? ` Random order: ${randomNote.replace(/\.$/, "")}.` : "");
  const legend = h("p", { class: "keys", "data-key": "keys" },
    kinds.map((kind) => swatch(kind, KIND_WORDS[kind])), hasBand && swatch(`band ${last.kind}`, "95 % interval"),
    random.length ? swatch("random", "random order, expected") : null, target ? swatch("target", "target") : null);
  const rows = [
    ...drawn.map((point) => [count(point.labels_used), point.kind, percent(point.accuracy, 1),
      point.interval ? `${percent(point.interval[0], 1)} – ${percent(point.interval[1], 1)}` : "–"]),
    ...random.map((point) => [count(point.labels_used), "random", percent(point.accuracy, 1),
      point.interval ? `${percent(point.interval[0], 1)} – ${percent(point.interval[1], 1)}` : "–"]),
  ];
  await show(part, {
    caption, legend, columns: ["Labels", "Kind", "Accuracy", "95 % interval"], rows,
    draw: (width) => {
      const { Plot } = window;
      const xOf = [...drawn, ...random].map((point) => point.labels_used);
      const lows = [...drawn.flatMap((point) => [point.accuracy, ...(point.interval || [])]), ...random.map((point) => point.accuracy), target ?? 1];
      const low = Math.max(0, Math.floor((Math.min(...lows) - 0.03) * 10) / 10);
      const [first, end] = [Math.min(...xOf), Math.max(...xOf)];
      const isLog = first > 0 && end / first > 20;
      const at = { x: "labels_used", y: "accuracy" };
      const colour = (kind) => `var(--${kind})`;
      return Plot.plot({
        className: CLASS, width, height: Math.max(220, Math.min(340, width * 0.5)), marginLeft: 44, marginRight: 16, marginBottom: 36,
        x: { label: "Labels", type: isLog ? "log" : "linear", domain: first === end ? [Math.max(0, first - 5), end + 5] : [first, end], nice: !isLog,
          ticks: isLog ? undefined : Math.max(3, Math.min(8, Math.floor(width / 90))), tickFormat: isLog ? (n) => (/^[125]0*$/.test(String(n)) ? count(n) : "") : count },
        y: { label: null, domain: [low, 1], grid: true, ticks: 5, tickFormat: (share) => percent(share) },
        marks: [
          kinds.map((kind) => Plot.areaY(drawn.filter((point) => point.kind === kind && point.interval),
            { x: "labels_used", y1: (point) => point.interval[0], y2: (point) => point.interval[1], fill: colour(kind), fillOpacity: 0.16, curve: "monotone-x" })),
          Plot.areaY(random.filter((point) => point.interval), { x: "labels_used", y1: (point) => point.interval[0], y2: (point) => point.interval[1], fill: "var(--muted)", fillOpacity: 0.1 }),
          Plot.lineY(random, { ...at, stroke: "var(--muted)", strokeDasharray: "3 4", strokeWidth: 1.5, curve: "monotone-x" }),
          target ? Plot.ruleY([target], { stroke: "var(--target)", strokeWidth: 1.5, strokeDasharray: "8 4" }) : null,
          target ? Plot.text([target], { y: (share) => share, frameAnchor: "left", text: (share) => `target ${percent(share)}`, dx: 4, dy: -10, textAnchor: "start", fill: "var(--target)" }) : null,
          kinds.map((kind) => [
            Plot.lineY(drawn.filter((point) => point.kind === kind), { ...at, stroke: colour(kind), strokeWidth: 2, curve: "monotone-x" }),
            Plot.dot(drawn.filter((point) => point.kind === kind), { ...at, r: drawn.length > 60 ? 1.5 : 3, fill: colour(kind) }),
          ]),
          Plot.tip(drawn, Plot.pointer({ ...at, title: (point) => `${counted(point.labels_used, "label")}\n${percent(point.accuracy, 1)} ${point.kind}` +
            (point.interval ? `\n${percent(point.interval[0], 1)} to ${percent(point.interval[1], 1)}` : "") })),
        ],
      });
    },
  });
}

// -- classes ----------------------------------------------------------------------------------------------------------

export async function classes(part, { classes: items }) {
  if (!items.length) {
    showNothing(part, "How many labels each class has, and how many of the other images look like it, comes with the first model.");
    return;
  }
  const nLabels = items.reduce((sum, item) => sum + item.n_labels, 0);
  const predicted = items.filter((item) => item.n_predicted !== null);
  if (!nLabels && !predicted.length) {
    const names = items.slice(0, 6).map((item) => item.label).join(", ");
    showNothing(part, `Nothing is labeled yet. There ${items.length === 1 ? "is" : "are"} ${counted(items.length, "class", "classes")} to choose from: ${names}${items.length > 6 ? " …" : ""}; the model learns each from its first label on.`);
    return;
  }
  const nPredicted = predicted.reduce((sum, item) => sum + item.n_predicted, 0);
  const shares = items.map((item) => ({ ...item, given: nLabels ? item.n_labels / nLabels : 0,
    pool: item.n_predicted === null || !nPredicted ? null : item.n_predicted / nPredicted }))
    .sort((a, b) => b.given - a.given || (b.pool ?? 0) - (a.pool ?? 0));
  const unlabeled = items.filter((item) => item.n_labels === 0).map((item) => item.label);
  const caption = nLabels === 0 ? "No labels yet." : `${counted(nLabels, "label")} in ${counted(items.length, "class", "classes")}. ` +
    (unlabeled.length ? `Nothing is labeled ${unlabeled.slice(0, 4).join(", ")}${unlabeled.length > 4 ? ` and ${unlabeled.length - 4} more` : ""} yet: the model cannot know ${unlabeled.length === 1 ? "it" : "them"}.`
      : predicted.length ? "Where the mark is far right of its bar, a class is rarer among the labels than among the images." : "");
  const drawn = shares.slice(0, MOST_BARS);
  await show(part, {
    caption: caption + (shares.length > MOST_BARS ? ` The ${MOST_BARS} largest are drawn.` : ""),
    legend: h("p", { class: "keys", "data-key": "keys" }, swatch("bar", "share of the labels"), predicted.length ? swatch("mark", "share of the predictions") : null),
    columns: ["Class", "Labels", "Predicted, unlabeled"], rows: shares.map((item) => [item.label, count(item.n_labels), item.n_predicted === null ? "–" : count(item.n_predicted)]),
    draw: (width) => {
      const { Plot } = window;
      const names = drawn.map((item) => item.label);
      return Plot.plot({
        className: CLASS, width, height: 34 + drawn.length * 24, marginLeft: Math.min(120, 16 + 7 * Math.min(14, Math.max(...names.map((name) => name.length)))), marginRight: 44, marginTop: 6,
        x: { label: null, tickFormat: (share) => percent(share), ticks: 3, grid: true, domain: [0, Math.max(0.01, ...drawn.flatMap((item) => [item.given, item.pool ?? 0]))] },
        y: { label: null, domain: names, tickFormat: (name) => shortened(name, 14), tickSize: 0 },
        marks: [
          Plot.barX(drawn, { x: "given", y: "label", fill: "var(--bar)", insetTop: 3, insetBottom: 3, rx: 2 }),
          Plot.text(drawn, { x: (item) => Math.max(item.given, item.pool ?? 0), y: "label", text: (item) => count(item.n_labels), dx: 8, textAnchor: "start", fill: "var(--ink)" }),
          Plot.tickX(drawn.filter((item) => item.pool !== null), { x: "pool", y: "label", stroke: "var(--mark)", strokeWidth: 2.5 }),
          Plot.tip(drawn, Plot.pointerY({ x: "given", y: "label", title: (item) => `${item.label}\n${counted(item.n_labels, "label")} (${percent(item.given)})` +
            (item.pool === null ? "" : `\npredicted for ${counted(item.n_predicted, "image")} (${percent(item.pool)})`) })),
        ],
      });
    },
  });
}

/** Names that differ at their end only, as "class 12", are still told apart. */
function shortened(text, most) {
  const tail = Math.floor((most - 1) / 2.5);
  return text.length > most ? `${text.slice(0, most - 1 - tail).trimEnd()}…${text.slice(-tail).trimStart()}` : text;
}

// -- confusion --------------------------------------------------------------------------------------------------------

export async function confusion(part, { confusion: matrix, label_figures: figures }) {
  if (figures) {
    await labelFigures(part, figures);
    return;
  }
  if (!matrix || !matrix.labels.length) {
    showNothing(part, "Which classes are taken for which is counted once the model was tried on labels it had not learned from.");
    return;
  }
  const { labels, counts } = matrix;
  const cells = labels.flatMap((given, i) => {
    const total = counts[i].reduce((sum, n) => sum + n, 0);
    return labels.map((predicted, j) => ({ given, predicted, n: counts[i][j], share: total ? counts[i][j] / total : 0, isRight: i === j }));
  });
  const worst = cells.filter((cell) => !cell.isRight && cell.n).sort((a, b) => b.n - a.n).slice(0, 3)
    .map((cell) => `${cell.given} for ${cell.predicted} (${cell.n === 1 ? "once" : `${count(cell.n)} times`})`);
  const caption = (worst.length ? `Most often taken for another: ${worst.join(", ")}. ` : "Nothing is taken for anything else. ") + told(matrix.basis);
  await show(part, {
    caption, columns: ["Given \\ predicted", ...labels], rows: labels.map((given, i) => [given, ...counts[i].map(count)]),
    draw: (width) => {
      const { Plot } = window;
      const isNamed = labels.length <= MOST_NAMED;
      const left = isNamed ? Math.min(90, 14 + 7 * Math.min(10, Math.max(...labels.map((name) => name.length)))) : 16;
      const side = (width - left - 8) / labels.length;
      const axis = { domain: labels, label: null, tickSize: 0, padding: isNamed ? 0.06 : 0, ticks: isNamed ? undefined : [], tickFormat: (name) => shortened(name, 10) };
      return Plot.plot({
        className: CLASS, width, height: Math.min(side, 44) * labels.length + (isNamed ? 64 : 40), marginLeft: left, marginTop: 22, marginBottom: isNamed ? 42 : 18, marginRight: 8,
        x: { ...axis, tickRotate: side < 60 ? -35 : 0 }, y: axis,
        marks: [
          Plot.cell(cells, { x: "predicted", y: "given", fill: (cell) => (!cell.n ? "var(--muted)" : cell.isRight ? "var(--right)" : "var(--wrong)"), fillOpacity: (cell) => (cell.n ? 0.1 + 0.75 * cell.share : 0.05), rx: isNamed ? 3 : 0 }),
          side >= 20 ? Plot.text(cells.filter((cell) => cell.n), { x: "predicted", y: "given", text: (cell) => count(cell.n), fill: (cell) => (cell.share > 0.55 ? "var(--on-strong)" : "var(--ink)") }) : null,
          Plot.text(["predicted →"], { frameAnchor: "top-left", dy: -18, text: (text) => text, textAnchor: "start", fill: "var(--muted)" }),
          Plot.tip(cells, Plot.pointer({ x: "predicted", y: "given", title: (cell) => `labeled ${cell.given}, predicted ${cell.predicted}\n${counted(cell.n, "time")}, ${percent(cell.share)} of ${cell.given}` })),
        ],
      });
    },
  });
}

/** Where images may have several labels: how well each is told, the worst first. */
async function labelFigures(part, figures) {
  const share = (value) => (Number.isFinite(value) ? percent(value) : "–");
  const labels = [...figures.labels].sort((a, b) => (a.f1 ?? 2) - (b.f1 ?? 2) || a.label.localeCompare(b.label));
  const drawn = labels.filter((item) => Number.isFinite(item.f1)).slice(0, MOST_BARS);
  const caption = `All labels of an image are right in ${share(figures.exact_match)}, a single label in ${share(figures.label_accuracy)}. ` +
    `F1, the mean of how many of those found have the label and how many that have it are found, is ${share(figures.macro_f1)} on average. ` + told(figures.basis);
  await show(part, {
    caption, columns: ["Label", "Have it", "Right", "F1", "Average precision"],
    rows: labels.map((item) => [item.label, count(item.n_having), share(item.accuracy), share(item.f1), share(item.average_precision)]),
    draw: (width) => {
      const { Plot } = window;
      return Plot.plot({
        className: CLASS, width, height: 26 * drawn.length + 56, marginLeft: 100, marginRight: 44, marginTop: 8, marginBottom: 34,
        x: { domain: [0, 1], label: "F1", tickFormat: (value) => percent(value), ticks: 4, grid: true },
        y: { domain: drawn.map((item) => item.label), label: null, tickSize: 0, tickFormat: (name) => shortened(name, 13) },
        marks: [
          Plot.barX(drawn, { y: "label", x: "f1", fill: "var(--measured)", fillOpacity: 0.75, rx: 2, insetTop: 3, insetBottom: 3 }),
          Plot.text(drawn, { y: "label", x: "f1", text: (item) => percent(item.f1), dx: 4, textAnchor: "start", fill: "var(--ink)" }),
          Plot.tip(drawn, Plot.pointerY({ y: "label", x: "f1", title: (item) => `${item.label}: ${counted(item.n_having, "image")}\nright in ${share(item.accuracy)}, F1 ${share(item.f1)}, average precision ${share(item.average_precision)}` })),
        ],
      });
    },
  });
}

// -- calibration ------------------------------------------------------------------------------------------------------

export async function calibration(part, { calibration: found }) {
  const bins = (found?.bins || []).filter((bin) => bin.n > 0 && Number.isFinite(bin.accuracy));
  if (!bins.length) {
    showNothing(part, "Whether a model that is 90 % sure is right nine times in ten is known once it was tried on labels it had not learned from.");
    return;
  }
  const n = bins.reduce((sum, bin) => sum + bin.n, 0);
  const lean = bins.reduce((sum, bin) => sum + bin.n * (bin.confidence - bin.accuracy), 0) / n;
  const off = found.error === null || found.error === undefined ? "" : `Off by ${(found.error * 100).toFixed(1)} percentage points on average, ` +
    (Math.abs(lean) < 0.01 ? "to neither side. " : lean > 0 ? "rather too sure. " : "rather too modest. ");
  await show(part, {
    caption: `${off}On the line, confidence is right. ${told(found.basis)}`, columns: ["Confidence", "Right", "Labels"],
    rows: bins.map((bin) => [percent(bin.confidence), percent(bin.accuracy), count(bin.n)]),
    draw: (width) => {
      const { Plot } = window;
      const domain = [Math.min(0.5, ...bins.map((bin) => Math.floor(Math.min(bin.confidence, bin.accuracy) * 10) / 10)), 1];
      const axis = { domain, grid: true, ticks: 4, tickFormat: (share) => percent(share) };
      return Plot.plot({
        className: CLASS, width, height: Math.min(300, Math.max(220, width * 0.75)), marginLeft: 44, marginRight: 14, marginBottom: 36, marginTop: 22,
        x: { ...axis, label: "Confidence" }, y: { ...axis, label: "Right" }, r: { range: [2.5, 11], domain: [0, Math.max(...bins.map((bin) => bin.n))] },
        marks: [
          Plot.line([domain[0], 1], { x: (share) => share, y: (share) => share, stroke: "var(--muted)", strokeDasharray: "3 4" }),
          Plot.link(bins, { x1: "confidence", x2: "confidence", y1: "confidence", y2: "accuracy", stroke: "var(--measured)", strokeOpacity: 0.45, strokeWidth: 1.5 }),
          Plot.dot(bins, { x: "confidence", y: "accuracy", r: "n", fill: "var(--measured)", fillOpacity: 0.85, stroke: "var(--surface)" }),
          Plot.tip(bins, Plot.pointer({ x: "confidence", y: "accuracy", title: (bin) => `${counted(bin.n, "label")} with confidence ${percent(bin.confidence)}\n${percent(bin.accuracy)} of them right` })),
        ],
      });
    },
  });
}
