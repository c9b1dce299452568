// Versions: what each was made of, and going back to one, after a question whether it is meant.

import { h } from "./dom.js";
import { nothingYet } from "./parts.js";
import { clock, count, percent, shortVersion } from "./words.js";
import { ask } from "./service.js";

const MOST = 12;

export function versions({ versions: items, status }, choice) {
  if (!items.length) return nothingYet("The first version is made once all images are embedded; each is kept here, and can be gone back to.");
  const pinned = status.pinned;
  const shown = choice.all ? items : items.slice(0, MOST);
  return [
    pinned ? h("div", { class: "pinned", "data-key": "pinned" },
      h("p", {}, `The project stays with ${shortVersion(pinned.version)}; labels go on being counted.`),
      choice.version === "newest" ? confirmation("Go on with all labels?", choice) : button("release", "newest", "Go on with the labels", "button primary")) : null,
    choice.error ? h("p", { class: "problem", role: "alert", "data-key": "problem" }, choice.error) : null,
    choice.done ? h("p", { class: "good", role: "status", "data-key": "done" }, choice.done) : null,
    h("div", { class: "scroll-x", "data-key": "table", tabindex: "0", role: "region", "aria-label": "Table of versions" }, h("table", {},
      h("thead", {}, h("tr", {}, ["Version", "Made", "Labels", "Accuracy", ""].map((name) => h("th", { scope: "col", class: name === "Made" ? "roomy" : null }, name || h("span", { class: "unseen" }, "Use"))))),
      h("tbody", {}, shown.map((item) => row(item, status, choice))))),
    items.length > MOST ? h("p", { "data-key": "all" }, button("all", "", choice.all ? "Show fewer" : `Show all ${count(items.length)}`, "button")) : null,
  ];
}

function row(item, status, choice) {
  const isPublished = item.version === status.model_version;
  const isPinned = status.pinned?.version === item.version;
  return h("tr", { "data-key": item.version, class: isPublished ? "current" : null },
    h("th", { scope: "row", title: item.version }, shortVersion(item.version), " ",
      isPublished && h("span", { class: "tag typical" }, "published"), isPinned && h("span", { class: "tag uncertain" }, "stays")),
    h("td", { class: item.error ? null : "roomy" }, item.created_at ? clock(item.created_at) : "", item.error && h("span", { class: "problem" }, item.error)),
    h("td", { class: "number" }, item.labels_used === undefined ? "" : count(item.labels_used)),
    h("td", { class: "number" }, item.accuracy === null || item.accuracy === undefined ? "–" : percent(item.accuracy, 1),
      item.accuracy_kind && h("span", { class: "quiet small", title: item.accuracy_kind }, ` ${item.accuracy_kind.split(/ on |[,:;]/)[0]}`)),
    h("td", { class: "actions" }, item.error || isPinned || item.kind === "seed" ? null
      : choice.version === item.version ? confirmation(`Use ${shortVersion(item.version)} from now on?`, choice)
        : button("use", item.version, "Use this version", "button", `Use this version: ${shortVersion(item.version)}`)));
}

const button = (action, version, text, className, label = null) =>
  h("button", { type: "button", class: className, "data-action": action, "data-version": version, "aria-label": label, "data-key": `${action} ${version}` }, text);

function confirmation(question, choice) {
  return h("span", { class: "confirm", role: "group", "aria-label": question, "data-key": "confirm" }, h("span", {}, question),
    h("button", { type: "button", class: "button primary", "data-action": "confirm", disabled: choice.busy, "data-key": "yes" }, choice.busy ? "One moment …" : "Yes"),
    h("button", { type: "button", class: "button", "data-action": "cancel", disabled: choice.busy, "data-key": "no" }, "No"));
}

/** Does what was confirmed, and says how it went. */
async function carryOut(project, version) {
  const path = `/api/projects/${project}/pin`;
  if (version === "newest") await ask(path, { method: "DELETE" });
  else await ask(path, { method: "POST", body: JSON.stringify({ version }), headers: { "Content-Type": "application/json" } });
  return version === "newest" ? "New versions are trained on all labels again." : `New versions go by ${shortVersion(version)}.`;
}

/** Listens to the buttons of the part; `draw` draws it anew, `onDone` is called when something was changed. */
export function handleVersions(part, project, { draw, onDone }) {
  const choice = { version: null, busy: false, error: "", done: "", all: false };
  const focus = (selector) => part.querySelector(selector)?.focus();
  part.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && choice.version && !choice.busy) part.querySelector("[data-action=cancel]")?.click();
  });
  part.addEventListener("click", async (event) => {
    const pressed = event.target.closest("button[data-action]");
    if (!pressed) return;
    const { action, version } = pressed.dataset;
    if (action === "all") choice.all = !choice.all;
    if (action === "use" || action === "release") Object.assign(choice, { version, error: "", done: "" });
    if (action === "cancel") {
      const was = choice.version;
      choice.version = null;
      draw();
      focus(`[data-version="${CSS.escape(was)}"]`);
      return;
    }
    if (action !== "confirm") {
      draw();
      if (action !== "all") focus("[data-action=confirm]");
      return;
    }
    choice.busy = true;
    draw();
    try {
      choice.done = await carryOut(project, choice.version);
    } catch (refusal) {
      choice.error = refusal.message;
    }
    Object.assign(choice, { busy: false, version: null });
    draw();
    part.setAttribute("tabindex", "-1");
    part.focus({ preventScroll: true });
    onDone();
  });
  return choice;
}
