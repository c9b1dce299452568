// Numbers and times as people read them.

const NUMBER = new Intl.NumberFormat("en");

export const count = (n) => NUMBER.format(n);

/** "1 label", "1,200 labels". */
export const counted = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

/** 0..1 as "91 %"; with `digits` "91.3 %". */
export const percent = (share, digits = 0) => `${(share * 100).toFixed(digits)}\u00a0%`;

/** 75 → "1 min 15 s". */
export function duration(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return s % 60 && s < 600 ? `${Math.floor(s / 60)} min ${s % 60} s` : `${Math.round(s / 60)} min`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.round((s % 3600) / 60)} min`;
  return counted(Math.round(s / 86400), "day");
}

/** How long ago an ISO time was; "just now" below five seconds. */
export function ago(iso, now = Date.now()) {
  const seconds = (now - Date.parse(iso)) / 1000;
  if (Number.isNaN(seconds)) return "at an unknown time";
  if (seconds < 5) return "just now";
  const text = seconds < 60 ? `${Math.round(seconds)} s` : seconds < 3600 ? `${Math.round(seconds / 60)} min`
    : seconds < 86400 ? `${Math.round(seconds / 3600)} h` : counted(Math.round(seconds / 86400), "day");
  return `${text} ago`;
}

export function clock(iso) {
  const time = new Date(iso);
  if (Number.isNaN(time.getTime())) return "";
  const isToday = time.toDateString() === new Date().toDateString();
  return time.toLocaleString("en-GB", isToday ? { timeStyle: "short" } : { dateStyle: "medium", timeStyle: "short" });
}

/** "v0012-42labels-20260101T…" → "v0012". */
export const shortVersion = (version) => (version ? version.split("-")[0] : "none");

export const sentence = (text) => (/[.!?…]$/.test(text) ? text : `${text}.`);
/** A sentence as it comes from the service, begun and ended as one; "" for none. */
export const told = (text) => (text ? sentence(capital(String(text))) : "");

export const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
