// Numbers as people read them. Everything takes null ("not known") and NaN ("not a number") apart.

export const UNKNOWN = "–";

/** Write a measured value with four significant digits: 2.346, 3e-4, 12,346, NaN, −Inf. */
export function number(value, digits = 4) {
  if (value === null || value === undefined) return UNKNOWN;
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "Inf" : "−Inf";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-3 || size >= 1e7) return exponential(value, digits);
  if (size >= 10 ** digits) return integer(value);
  return minus(value.toPrecision(digits));
}

function exponential(value, digits) {
  const [mantissa, exponent] = value.toExponential(digits - 1).split("e");
  return minus(`${Number(mantissa)}e${exponent.replace("+", "")}`);
}

/** Write a learning rate without trailing zeros: 3e-4, 0.1, 2.5e-5. */
export function rate(value) {
  if (value === null || value === undefined || !Number.isFinite(value) || value === 0) return number(value);
  return Math.abs(value) < 1e-2 ? exponential(value, 4) : minus(String(Number(value.toPrecision(4))));
}

function minus(text) {
  return text.startsWith("-") ? `−${text.slice(1)}` : text;
}

/** Write a count with separators: 12,345. */
export function integer(value) {
  if (value === null || value === undefined) return UNKNOWN;
  return Number.isFinite(value) ? minus(Math.round(value).toLocaleString("en-US")) : number(value);
}

/** Write a factor: ×0.25. */
export function factor(value) {
  return value === null || value === undefined ? UNKNOWN : `×${rate(value)}`;
}

/** Write a ratio 0 to 1 as per cent; small shares keep two digits. */
export function percent(ratio) {
  if (ratio === null || ratio === undefined) return UNKNOWN;
  if (!Number.isFinite(ratio)) return number(ratio);
  const value = ratio * 100;
  if (value === 0) return "0 %";
  if (value < 0.01) return "<0.01 %";
  return `${value < 1 ? value.toFixed(2) : value < 10 ? value.toFixed(1) : Math.round(value)} %`;
}

/** Write seconds in the two largest units that matter: 850 ms, 12.3 s, 4 min 5 s, 1 h 22 min, 3 d 4 h. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return UNKNOWN;
  if (seconds < 1) return seconds < 1e-3 ? `${(seconds * 1e6).toPrecision(3)} µs` : `${Number((seconds * 1e3).toPrecision(3))} ms`;
  if (seconds < 60) return `${seconds < 10 && !Number.isInteger(seconds) ? seconds.toFixed(1) : Math.round(seconds)} s`;
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const first = units.findIndex(([, size]) => seconds >= size);
  const [[name, size], [nextName, nextSize]] = [units[first], units[first + 1]];
  const whole = Math.floor(seconds / size);
  const rest = Math.floor((seconds - whole * size) / nextSize);
  return rest ? `${whole} ${name} ${rest} ${nextName}` : `${whole} ${name}`;
}

/** Write an age: whole seconds, so that a ticking figure does not flicker. */
export function age(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return UNKNOWN;
  return seconds < 1 ? "just now" : `${duration(Math.floor(seconds))} ago`;
}

/** Write bytes in binary units: 11.8 GiB. */
export function bytes(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return UNKNOWN;
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  const power = Math.min(units.length - 1, value < 1 ? 0 : Math.floor(Math.log2(value) / 10));
  return `${Number((value / 1024 ** power).toPrecision(3))} ${units[power]}`;
}

/** Write the time of day, with the date when it was another day. */
export function clock(unixSeconds) {
  if (!unixSeconds) return UNKNOWN;
  const date = new Date(unixSeconds * 1000);
  const time = date.toLocaleTimeString("en-GB");
  return date.toDateString() === new Date().toDateString() ? time : `${date.toLocaleDateString("en-CA")} ${time}`;
}

/** Write indices as ranges: [0, 1, 2, 5] becomes "0–2, 5". */
export function ranges(indices) {
  const parts = [];
  for (const index of [...indices].sort((a, b) => a - b)) {
    const last = parts[parts.length - 1];
    if (last && last[1] === index - 1) last[1] = index;
    else parts.push([index, index]);
  }
  return parts.map(([from, to]) => (from === to ? `${from}` : to === from + 1 ? `${from}, ${to}` : `${from}–${to}`)).join(", ");
}

/** Turn an identifier into words: gradient_explosion becomes "gradient explosion". */
export function words(identifier) {
  return String(identifier).replaceAll("_", " ");
}
