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
 * Calls `onChange()` whenever the project changes: by its events, and while there are none every five seconds.
 * `onMode("live" | "asking")` says which of the two it is. A page that nobody sees leaves its place to others.
 */
export function follow(project, { onChange, onMode }) {
  let source = null;
  let asking = null;
  let again = null;
  let mode = "";

  const set = (to) => {
    if (mode !== to) onMode(to);
    mode = to;
  };
  const askRegularly = () => {
    set("asking");
    asking ??= setInterval(onChange, ASK_AGAIN_MS);
  };
  const stop = () => {
    source?.close();
    source = null;
    clearInterval(asking);
    asking = null;
    clearTimeout(again);
  };
  const listen = () => {
    source?.close();
    const mine = (source = new EventSource(`/api/projects/${project}/events`));
    mine.addEventListener("open", () => {
      clearInterval(asking);
      asking = null;
      set("live");
    });
    mine.addEventListener("changed", () => onChange());
    mine.addEventListener("error", () => {
      if (mine.readyState === EventSource.CLOSED) {
        // Refused: the browser does not try again by itself.
        again = setTimeout(listen, LISTEN_AGAIN_MS);
        askRegularly();
        return;
      }
      // It does after an end or a fault; if that takes long, something is wrong.
      setTimeout(() => source === mine && mine.readyState !== EventSource.OPEN && askRegularly(), ASK_AGAIN_MS);
    });
  };
  document.addEventListener("visibilitychange", () => {
    stop();
    if (document.visibilityState === "hidden") return;
    listen();
    onChange();
  });
  if (document.visibilityState !== "hidden") listen();
}
