// The dashboard of one project: asks the service, draws what it says, and follows what changes.

import * as charts from "./charts.js";
import { h, outward, patch } from "./dom.js";
import * as parts from "./parts.js";
import { Refusal, ASK_AGAIN_MS, askJson, follow } from "./service.js";
import { handleVersions, versions } from "./versions.js";
import { ago, clock, counted, percent, shortVersion } from "./words.js";

const project = Number(location.pathname.match(/\/projects\/(\d+)/)[1]);
const slot = (id) => document.getElementById(id);
const REFRESH_MS = 30000; // what no event tells of, such as an error, is at most so old
const AGO_MS = 5000;

let shown = null;
let drawn = new Map();
let map = null;

// -- drawing ----------------------------------------------------------------------------------------------------------

/** Draws a part if what it is made of has changed. */
function drawIfNew(id, content, draw) {
  const text = JSON.stringify(content);
  if (drawn.get(id) === text) return;
  drawn.set(id, text);
  Promise.resolve(draw(slot(id))).catch((error) => {
    drawn.delete(id);
    patch(slot(id), h("p", { class: "problem" }, error.message));
    console.error(error);
  });
}

const words = (make) => (part) => patch(part, make);

function draw(board) {
  const { status } = board;
  const title = board.project.title || `Project ${project}`;
  document.title = `${title} · Active learning`;
  patch(slot("title"), title);
  patch(slot("open"), outward(board.project.link, { class: "button primary", title: "Open in Label Studio" },
    "Open", h("span", { class: "roomy" }, " in Label Studio")));
  drawIfNew("figures", [status, board.last_label_at, board.curve.target], words(parts.figures(board)));
  drawIfNew("suggestion", status.forecast, words(parts.suggestion(board)));
  drawIfNew("now", status, words(parts.now(board)));
  drawIfNew("window", [board.window, status.model_version, status.pool_size], words(parts.nextWindow(board)));
  patch(slot("next-note"), board.window.length ? `${counted(board.window.length, "image")}, the most telling first. A click opens one in Label Studio.` : "");
  drawIfNew("suspects", [board.suspects, status.n_suspects, status.accuracy_labels, status.kind], words(parts.suspects(board)));
  drawIfNew("disagreements", [board.disagreements, status.agreement], words(parts.disagreements(board)));
  drawVersions();
  drawIfNew("curve", board.curve, (part) => charts.curve(part, board));
  drawIfNew("classes", board.classes, (part) => charts.classes(part, board));
  drawIfNew("confusion", [board.confusion, board.label_figures], (part) => charts.confusion(part, board));
  drawIfNew("calibration", board.calibration, (part) => charts.calibration(part, board));
}

const choice = handleVersions(slot("versions-part"), project, { draw: () => drawVersions(), onDone: () => refresh() });

function drawVersions() {
  if (shown) drawIfNew("versions-part", [shown.versions, shown.status.model_version, shown.status.pinned, choice], words(versions(shown, choice)));
}

/** A picture that does not come leaves its place marked. */
document.addEventListener("error", (event) => {
  if (event.target instanceof HTMLImageElement) event.target.setAttribute("data-missing", "");
}, true);

setInterval(() => {
  for (const element of document.querySelectorAll("[data-ago]")) element.textContent = `last one ${ago(element.dataset.ago)}`;
}, AGO_MS);

// -- asking -----------------------------------------------------------------------------------------------------------

let isAsking = false;
let isStale = false;
let awaySince = null;
let retry = null;

async function refresh() {
  isStale = true;
  if (isAsking) return;
  isAsking = true;
  while (isStale) {
    isStale = false;
    try {
      const board = await askJson(`/api/projects/${project}/dashboard`);
      const before = shown;
      shown = board;
      performance.mark(before ? "drawing-again" : "answered");
      draw(board);
      performance.mark("drawn");
      isBack();
      announceChange(before, board);
      map?.update(board);
      if (!before) startMap(board);
    } catch (error) {
      if (!(error instanceof Refusal)) console.error(error);
      isAway(error);
    }
  }
  isAsking = false;
}

function isAway(error) {
  awaySince ??= new Date();
  const banner = slot("banner");
  const when = clock(awaySince.toISOString());
  banner.textContent = error instanceof Refusal && !error.isAway ? error.message
    : `${error instanceof Refusal ? error.message : "This page could not show what the service says."} ` +
      (shown ? `What you see is from ${when}. ` : "") + "It is asked again every few seconds.";
  banner.hidden = false;
  clearTimeout(retry);
  retry = setTimeout(refresh, ASK_AGAIN_MS);
}

function isBack() {
  clearTimeout(retry);
  if (awaySince) announce("The service answers again.");
  awaySince = null;
  slot("banner").hidden = true;
}

function announce(text) {
  slot("announce").textContent = text;
}

function announceChange(before, { status }) {
  if (!before || before.status.model_version === status.model_version || !status.model_version) return;
  const accuracy = status.accuracy_interval ? status.accuracy : status.expected_accuracy ?? status.accuracy;
  announce(`Version ${shortVersion(status.model_version)}: ${counted(status.labels_used, "label")}` +
    (accuracy === null || accuracy === undefined ? "." : `, accuracy about ${percent(accuracy)}.`));
}

function startMap(board) {
  const begin = async () => {
    const [{ showMap }] = await Promise.all([import("./map.js"), charts.loadLibraries()]);
    map = showMap(slot("map-part"), project, board);
  };
  const seen = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    seen.disconnect();
    begin().catch((error) => {
      patch(slot("map-part"), h("p", { class: "problem" }, error.message));
      console.error(error);
    });
  }, { rootMargin: "600px" });
  seen.observe(slot("map-part"));
}

// The page's first words before anything came.
for (const part of document.querySelectorAll(".part")) patch(part, h("p", { class: "quiet" }, "Loading …"));

refresh();
follow(project, {
  onChange: refresh,
  onMode: (mode) => patch(slot("live"), h("span", { class: `dot ${mode}` }),
    h("span", { class: "live-text", title: mode === "live" ? "This page updates by itself" : "Asks every five seconds" }, mode === "live" ? "Live" : "Every 5 s")),
});
setInterval(() => document.visibilityState === "visible" && refresh(), REFRESH_MS);
