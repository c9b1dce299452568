// What the service says, and when it says something new.

export const ASK_AGAIN_MS = 5000;
const LISTEN_AGAIN_MS = 60000;

/** An answer that is a refusal: its sentence, and the status (0: no answer at all). */
export class Refusal extends Error {
  constructor(status, sentence) {
    super(sentence);
    this.status = status;
  }
  get isAway() {
    return this.status === 0 || this.status >= 500;
  }
}

export async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { cache: "no-store", ...options, headers: { Accept: "application/json", ...options.headers } });
  } catch {
    throw new Refusal(0, "The service does not answer.");
  }
  if (answer.ok || answer.status === 304) return answer;
  let sentence = "";
  try {
    sentence = String((await answer.json()).error || "");
  } catch {
    // Not this service's own answer, as of a proxy before it.
  }
  throw new Refusal(answer.status, sentence || `The service answered ${answer.status}.`);
}

export const askJson = async (path) => (await ask(path)).json();

/**
 * Calls `onChange(what)` whenever the project changes: by its events, and while there are none every five seconds.
 * `onMode("live" | "asking")` says which of the two it is.
 */
export function follow(project, { onChange, onMode }) {
  let source = null;
  let timer = null;
  let mode = "";

  const set = (to) => {
    if (mode === to) return;
    mode = to;
    onMode(to);
  };
  const askRegularly = () => {
    set("asking");
    timer ??= setInterval(() => onChange(null), ASK_AGAIN_MS);
  };
  const listen = () => {
    source = new EventSource(`/api/projects/${project}/events`);
    source.addEventListener("open", () => {
      clearInterval(timer);
      timer = null;
      set("live");
    });
    source.addEventListener("changed", (event) => {
      let what = null;
      try {
        what = JSON.parse(event.data);
      } catch {
        // Something changed, whatever it is.
      }
      onChange(what);
    });
    source.addEventListener("error", () => {
      // The browser connects again by itself after an end or a fault, but not after a refusal.
      const isOver = source.readyState === EventSource.CLOSED;
      if (isOver) setTimeout(listen, LISTEN_AGAIN_MS);
      setTimeout(() => source.readyState !== EventSource.OPEN && askRegularly(), isOver ? 0 : ASK_AGAIN_MS);
    });
  };
  listen();
  document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && onChange(null));
}
