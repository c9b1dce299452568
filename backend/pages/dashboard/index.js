// The list of projects.

import { h, patch } from "./dom.js";
import { ASK_AGAIN_MS, askJson } from "./service.js";
import { count, counted, percent, shortVersion } from "./words.js";

const list = document.getElementById("projects");
const banner = document.getElementById("banner");
const titles = new Map(); // the first answer of a project's dashboard; what is asked again and again is its status

async function draw() {
  try {
    const { projects } = await askJson("/");
    const numbers = Object.keys(projects);
    const cards = await Promise.all(numbers.map((number) => card(number, projects[number])));
    patch(list, cards.length ? h("ul", { class: "cards" }, cards) : h("p", { class: "nothing" },
      "No project is connected yet. Run ", h("code", {}, "python -m backend connect 3"), " with the number of your project in Label Studio; it appears here by itself."));
    banner.hidden = true;
  } catch (refusal) {
    banner.textContent = `${refusal.message} It is asked again every few seconds.`;
    banner.hidden = false;
  }
  list.removeAttribute("aria-busy");
}

/** The project's title in Label Studio; null when that cannot be said now, and it is asked again with the next status. */
async function titleOf(number) {
  try {
    if (!titles.get(number)) titles.set(number, (await askJson(`/api/projects/${number}/dashboard`)).project.title);
  } catch (refusal) {
    console.warn(refusal.message);
  }
  return titles.get(number) || null;
}

async function card(number, address) {
  let title = titles.get(number) || null, lines;
  try {
    const status = await askJson(address);
    title = await titleOf(number);
    const known = status.accuracy_interval ? status.accuracy : status.expected_accuracy ?? status.accuracy;
    const parts = [title && `Project ${number}`, counted(status.labels_used, "label"), `version ${shortVersion(status.model_version)}`,
      status.pool_size !== null && `${count(status.pool_size)} left`];
    lines = [
      h("span", { class: "quiet" }, parts.filter(Boolean).join(" · ")),
      h("span", { class: "value" }, known === null || known === undefined ? "–" : percent(known)),
      status.last_error && h("span", { class: "problem" }, status.last_error),
    ];
  } catch (refusal) {
    lines = [h("span", { class: "problem" }, refusal.message)];
  }
  return h("li", { "data-key": number }, h("a", { class: "card project-card", href: `/projects/${number}` }, h("strong", {}, title || `Project ${number}`), lines));
}

draw();
setInterval(() => document.visibilityState === "visible" && draw(), ASK_AGAIN_MS);
