// The parts of the dashboard that are words and pictures: each takes the service's answer and gives elements.

import { h, outward } from "./dom.js";
import { ago, capital, clock, count, counted, duration, percent, sentence, shortVersion } from "./words.js";

/** What stands in a part that has nothing to show yet: what will come, and what to do. */
export const nothingYet = (...words) => h("p", { class: "nothing" }, ...words);

/** A picture of a task. One that does not come is marked as missing by the page (see project.js). */
export function thumbnail(address, taskId, attributes = {}) {
  return h("span", { class: "thumb" },
    address && h("img", { src: address, alt: `Image of task ${taskId}`, loading: "lazy", decoding: "async", ...attributes }));
}

const isModel = (status) => status.labels_used > 0 && status.kind === "model";

// -- overview ---------------------------------------------------------------------------------------------------------

function figure(name, value, note, extra = null) {
  return h("div", { class: "figure" }, h("dt", {}, name), h("dd", {}, h("span", { class: "value" }, value), note && h("span", { class: "note" }, note), extra));
}

export function figures({ status, last_label_at: lastLabelAt, curve }) {
  return h("dl", { class: "figures-row" },
    accuracyFigure(status),
    figure("Labels used", count(status.labels_used),
      [lastLabelAt ? h("span", { "data-ago": lastLabelAt }, `last one ${ago(lastLabelAt)}`) : "none yet",
        status.pool_size !== null && ` · ${counted(status.pool_size, "image")} left`].filter(Boolean)),
    neededFigure(status.forecast, curve.target),
    figure("Model version", shortVersion(status.model_version), versionNote(status)));
}

function accuracyFigure(status) {
  const interval = status.accuracy_interval;
  if (status.accuracy !== null && interval) {
    return figure("Accuracy", percent(status.accuracy),
      `${percent(interval[0])} to ${percent(interval[1])} · ${status.accuracy_kind || "measured"}`);
  }
  if (status.expected_accuracy !== null && status.expected_accuracy !== undefined) {
    const hard = status.cross_validated_accuracy;
    return figure("Accuracy, expected", `≈ ${percent(status.expected_accuracy)}`,
      hard !== null && hard !== undefined ? `an estimate; cross-validated on the labels, which are the hard ones: ${percent(hard)}` : "an estimate");
  }
  if (status.accuracy !== null) return figure("Accuracy", percent(status.accuracy), status.accuracy_kind);
  return figure("Accuracy", "–", "known from the first few labels of two classes on");
}

function neededFigure(forecast, target) {
  const name = target === null || target === undefined ? "Labels still needed" : `Labels to reach ${percent(target)}`;
  if (!forecast) return figure(name, "–", "foreseen after the first rounds");
  if (forecast.labels_needed === null) return figure(name, "–", forecast.reason || "not known yet");
  if (forecast.labels_needed === 0) return figure(name, "0", forecast.verdict === "target_reached" ? "the target is reached" : "about reached, not for certain yet");
  const interval = forecast.labels_needed_interval;
  const range = interval && (interval[1] === null ? `${count(interval[0])} or many more` : `${count(interval[0])} to ${count(interval[1])}, four times in five`);
  return figure(name, `≈ ${count(forecast.labels_needed)}`, range);
}

function versionNote(status) {
  if (!status.model_version) return "made once the images are embedded";
  const made = status.created_at ? `made ${clock(status.created_at)}` : "";
  return status.head_of ? `goes by ${shortVersion(status.head_of)} · ${made}` : made;
}

const VERDICTS = { true: "stop", false: "go-on", null: "unknown" };

export function suggestion({ status }) {
  const forecast = status.forecast;
  if (!forecast) return null;
  const [first, ...rest] = sentence(capital(forecast.suggestion || forecast.reason || "Too early to say.")).split(/(?<=[:.]) /);
  return h("div", { class: `suggestion ${VERDICTS[String(forecast.stop ?? null)] || "unknown"}` },
    h("p", {}, h("strong", {}, first), rest.length ? ` ${rest.join(" ")}` : null),
    forecast.basis && h("p", { class: "basis" }, `Basis: ${sentence(forecast.basis)}`));
}

// -- now --------------------------------------------------------------------------------------------------------------

function step(state, title, ...rest) {
  return h("li", { class: `step ${state}`, "data-key": `step-${title}` }, h("p", { class: "step-title" }, title), ...rest);
}

const TRAINING = {
  idle: ["done", "Model up to date", "A new version is made after every label."],
  queued: ["busy", "A new version is waiting its turn", "Labels came in; a worker takes it up in a moment."],
  running: ["busy", "Training and pushing a new version", "The head is fitted anew, and the queue is put in a new order."],
};

export function now({ status }) {
  const steps = [embeddingStep(status), trainingStep(status)];
  const fine = status.finetuning;
  if (fine) steps.push(step(fine.error ? "failed" : fine.state === "idle" ? "done" : "busy", "Fine-tuning the network", h("p", {}, sentence(capital(fine.error || fine.note || fine.state)))));
  if (status.shards_to_search) steps.push(step("busy", `Searching ${counted(status.shards_to_search, "shard")} for the next images`));
  if (status.n_workers) steps.push(step("done", status.n_workers === 1 ? "One worker is ready" : `${count(status.n_workers)} workers are ready`));
  const troubles = [...troublesOf(status)];
  return [
    h("ul", { class: "steps", "data-key": "steps" }, steps),
    troubles.length ? h("div", { class: "troubles", "data-key": "troubles" }, h("h4", {}, "Needs attention"), h("ul", {}, troubles)) : null,
  ];
}

function embeddingStep(status) {
  const embedding = status.embedding;
  const broken = status.image_failures ? failuresOf(status.image_failures) : null;
  if (!embedding) return step(status.model_version ? "done" : "waiting", status.model_version ? "Images embedded" : "Images not embedded yet",
    h("p", {}, status.model_version ? "New images are taken in by themselves." : "It begins as soon as a worker has time; start one with “make worker” if none runs."), broken);
  if (embedding.done >= embedding.total) return step("done", `All ${counted(embedding.total, "image")} embedded`, broken);
  const rate = embedding.images_per_s ? `${embedding.images_per_s >= 10 ? Math.round(embedding.images_per_s) : embedding.images_per_s.toFixed(1)} images/s` : "rate not known yet";
  const left = embedding.seconds_left !== null && embedding.seconds_left !== undefined ? `, about ${duration(embedding.seconds_left)} left` : "";
  return step("busy", "Embedding images",
    h("progress", { max: embedding.total, value: embedding.done, "aria-label": "Images embedded" }, percent(embedding.done / embedding.total)),
    h("p", {}, `${count(embedding.done)} of ${counted(embedding.total, "image")} · ${rate}${left}`), broken);
}

function failuresOf(failures) {
  const entries = Array.isArray(failures) ? failures.map((failure) => [failure.task_id ?? "?", failure.reason ?? failure])
    : typeof failures === "object" ? Object.entries(failures) : [];
  if (!entries.length) return null;
  return h("details", { "data-key": "broken" }, h("summary", {}, `${counted(entries.length, "image")} could not be read and ${entries.length === 1 ? "is" : "are"} left out`),
    h("ul", { class: "plain" }, entries.slice(0, 50).map(([task, reason]) => h("li", {}, `Task ${task}: ${typeof reason === "string" ? reason : JSON.stringify(reason)}`))));
}

function trainingStep(status) {
  if (status.training === null) return step("failed", "Not known", h("p", {}, "Redis does not answer, so nobody can say what is going on."));
  if (status.training === "idle" && !isModel(status)) {
    return step("waiting", "Waiting for labels", h("p", {}, "The first model comes once labels of two classes are there."));
  }
  const [state, title, text] = TRAINING[status.training] || TRAINING.idle;
  return step(state, title, state === "busy" && h("progress", { "aria-label": title }), h("p", {}, text));
}

function* troublesOf(status) {
  const item = (text) => h("li", {}, text);
  if (status.n_workers === 0) yield item("No worker is running: labels are kept, but nothing is learned until one is started (make worker).");
  for (const failure of status.failures || []) {
    const again = failure.next_try ? ` It is tried again at ${clock(failure.next_try)}.` : failure.needs_a_person ? " Somebody has to see to it." : "";
    yield item(`${capital(failure.work)} failed ${failure.times === 1 ? "once" : `${count(failure.times)} times`}: ${sentence(failure.reason)}${again}`);
  }
  const known = (status.failures || []).some((failure) => failure.reason === status.last_error);
  if (status.last_error && !known) yield item(`Last error: ${sentence(status.last_error)}`);
  if (status.backbone_warning) yield item(sentence(status.backbone_warning));
  if (status.version_note) yield item(sentence(capital(status.version_note)));
  if (status.validation?.note) yield item(sentence(capital(status.validation.note)));
  const ignored = Object.entries(status.ignored_labels || {});
  if (ignored.length) {
    yield h("li", {}, h("details", { "data-key": "ignored" }, h("summary", {}, `${counted(ignored.length, "label")} not used`),
      h("ul", { class: "plain" }, ignored.slice(0, 50).map(([task, reason]) => h("li", {}, `Task ${task}: ${reason}`)))));
  }
}

// -- next -------------------------------------------------------------------------------------------------------------

const KINDS = { uncertain: "Uncertain", different: "Unlike others", typical: "Typical", chance: "By chance", other: "Chosen" };

export function nextWindow({ window: items, status }) {
  if (!items.length) {
    if (status.model_version && status.pool_size === 0) return nothingYet("Everything is labeled: there is nothing left to ask.");
    return nothingYet(status.model_version
      ? "The next images appear with the next version, in a moment."
      : "Here will be the images to label next and why; first all images are embedded, which begins by itself.");
  }
  return h("ol", { class: "tiles", tabindex: "0", "aria-label": "Images to label next, the first one first" }, items.map(tile));
}

function tile(item) {
  const why = item.why || { kind: "other", sentence: "", classes: [] };
  const kind = KINDS[why.kind] ? why.kind : "other";
  const said = why.sentence ? sentence(capital(why.sentence)) : "";
  return h("li", { "data-key": `task-${item.task_id}` },
    outward(item.link, { class: "tile", title: said },
      h("span", { class: "picture" }, thumbnail(item.thumbnail, item.task_id), h("span", { class: "place", "aria-label": `Place ${item.place}` }, String(item.place))),
      h("span", { class: "tile-text" },
        h("span", { class: `tag ${kind}` }, KINDS[kind]),
        (why.classes || []).length ? h("span", { class: "odds" }, why.classes.map(odds)) : null,
        h("span", { class: "why" }, said))));
}

const odds = ({ label, probability }) => h("span", { class: "odd" },
  h("span", { class: "odd-name" }, label), h("span", { class: "odd-value" }, percent(probability)),
  h("span", { class: "odd-bar" }, h("span", { style: { width: `${Math.max(0, Math.min(1, probability)) * 100}%` } })));

// -- look again -------------------------------------------------------------------------------------------------------

export function suspects({ suspects: items, status }) {
  if (!items.length) {
    return nothingYet(status.accuracy_labels || isModel(status)
      ? "No label looks wrong to the model."
      : "Labels that look wrong will be listed here, once there are enough to judge one by the others.");
  }
  const more = (status.n_suspects || 0) - items.length;
  return [h("ul", { class: "rows", "data-key": "rows" }, items.map((item) => h("li", { "data-key": `task-${item.task_id}` },
    outward(item.link, { class: "row" }, thumbnail(item.thumbnail, item.task_id),
      h("span", { class: "row-text" },
        h("span", { class: "row-title" }, `Task ${item.task_id}`),
        h("span", {}, "labeled ", h("b", { class: "given" }, item.label), h("span", { class: "quiet" }, ` ${percent(item.probability)}`)),
        h("span", {}, "looks like ", h("b", {}, item.suggested_label), h("span", { class: "quiet" }, ` ${percent(item.suggested_probability)}`))))))),
  more > 0 ? h("p", { class: "quiet", "data-key": "more" }, `and ${count(more)} more, which come up as these are settled.`) : null];
}

export function disagreements({ disagreements: items, status }) {
  const agreement = status.agreement;
  if (!agreement) return nothingYet("Where people give one image different labels will be listed here, once several people label the same ones.");
  const summary = h("p", { class: "quiet", "data-key": "summary" },
    `${counted(agreement.n_annotators, "person", "people")} answered ${counted(agreement.n_tasks, "task")} together and agreed in ${percent(agreement.mean_pairwise_agreement)} of pairs` +
    (agreement.krippendorff_alpha === null ? "." : `; Krippendorff's alpha is ${agreement.krippendorff_alpha.toFixed(2)}.`));
  if (!items.length) return [summary, nothingYet("Everybody agrees.")];
  const more = (status.n_disagreements || 0) - items.length;
  return [summary, h("ul", { class: "rows", "data-key": "rows" }, items.map((item) => h("li", { "data-key": `task-${item.task_id}` },
    outward(item.link, { class: "row" }, thumbnail(item.thumbnail, item.task_id),
      h("span", { class: "row-text" },
        h("span", { class: "row-title" }, `Task ${item.task_id}`, item.ground_truth && h("span", { class: "tag typical" }, "settled")),
        Object.entries(item.answers || {}).map(([label, people]) => h("span", {}, h("b", {}, label),
          h("span", { class: "quiet" }, ` by ${people.length === 1 ? "person" : "people"} ${people.map((person) => person ?? "unknown").join(", ")}`)))))))),
  more > 0 ? h("p", { class: "quiet", "data-key": "more" }, `and ${count(more)} more.`) : null];
}
