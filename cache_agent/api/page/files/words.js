// Numbers and times for people, as the command line writes them.

const UNITS = ["B", "kB", "MB", "GB", "TB", "PB"];

// Bytes in decimal units: 512 B, 40.0 GB.
export function bytes(count) {
  if (typeof count !== "number" || !Number.isFinite(count)) return "";
  let unit = 0;
  let size = Math.max(0, count);
  while (size >= 999.5 && unit < UNITS.length - 1) { size /= 1000; unit += 1; }
  return `${unit && size < 99.95 ? size.toFixed(1) : Math.round(size)} ${UNITS[unit]}`;
}

// Seconds: 4.2 s, 3 min 20 s, 2 h 5 min, 4 d.
export function duration(seconds) {
  if (typeof seconds !== "number" || !Number.isFinite(seconds)) return "";
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 3600) return pair(seconds, 60, "min", 1, "s");
  if (seconds < 172800) return pair(seconds, 3600, "h", 60, "min");
  return `${Math.round(seconds / 86400)} d`;
}

function pair(seconds, large, largeName, small, smallName) {
  const whole = Math.floor(seconds / large);
  const rest = Math.floor((seconds - whole * large) / small);
  return rest ? `${whole} ${largeName} ${rest} ${smallName}` : `${whole} ${largeName}`;
}

// How long ago a time is; `when` is RFC 3339 or seconds since the epoch. Empty for what is no time.
export function ago(when, now = Date.now()) {
  const at = typeof when === "number" ? when * 1000 : Date.parse(when);
  if (Number.isNaN(at)) return "";
  const seconds = (now - at) / 1000;
  return seconds < 5 ? "just now" : `${duration(seconds)} ago`;
}

export const percent = (row) => (row.percent === undefined ? "" : `${row.percent}%`);
export const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
