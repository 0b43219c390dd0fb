// Talks to the run: JSON in and out, non-finite numbers, problems in the server's own words.

const NON_FINITE = new Map([["NaN", NaN], ["+Inf", Infinity], ["-Inf", -Infinity]]);
const TEXT = new Set(["name", "run_id", "id", "message", "reason", "actor", "detail", "title", "key", "class_name", "hostname", "model"]);
const TIMEOUT_MS = 8000;

/** What the server refused, or that it did not answer at all (`status` 0). */
export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** Read JSON in which a number that JSON cannot hold is a string. A run may still be called "NaN". */
export function parse(text) {
  return JSON.parse(text, (key, value) =>
    typeof value === "string" && NON_FINITE.has(value) && !TEXT.has(key) ? NON_FINITE.get(value) : value);
}

/** How far the server's clock is ahead of ours, from Date headers; 0 as long as that is possible. */
class Skew {
  constructor() {
    Object.assign(this, { low: -Infinity, high: Infinity });
  }

  observe(dateHeader, sent, received) {
    const date = Date.parse(dateHeader ?? "") / 1000;
    if (Number.isNaN(date)) return;
    // The header names the whole second in which the server answered, some time between sending and receiving.
    [this.low, this.high] = [Math.max(this.low, date - received), Math.min(this.high, date + 1 - sent)];
    if (this.low > this.high) [this.low, this.high] = [date - received, date + 1 - sent]; // one of the clocks was set
  }

  get seconds() {
    return this.low <= 0 && this.high >= 0 ? 0 : (this.low + this.high) / 2;
  }
}

const skew = new Skew();

/** The server's Unix time, as well as it can be known. */
export function serverTime() {
  return Date.now() / 1000 + skew.seconds;
}

async function request(path, options = {}) {
  let response;
  let text;
  const sent = Date.now() / 1000;
  try {
    response = await fetch(`api/v1${path}`, {
      cache: "no-store", credentials: "same-origin", signal: AbortSignal.timeout(TIMEOUT_MS), ...options,
      headers: { Accept: "application/json", ...options.headers },
    });
    text = await response.text();
  } catch {
    throw new ApiError("The run did not answer.", 0);
  }
  skew.observe(response.headers.get("Date"), sent, Date.now() / 1000);
  let body = null;
  try {
    body = parse(text);
  } catch {
    if (response.ok) throw new ApiError("The answer was not JSON: is another program on this port?", 0);
  }
  if (!response.ok) throw new ApiError(body?.detail ?? body?.title ?? `The server answered ${response.status}.`, response.status);
  return body;
}

/** GET one resource: `get("/history", {since: 12, points: 500})`. */
export function get(path, query = {}) {
  const search = new URLSearchParams(query).toString();
  return request(search ? `${path}?${search}` : path);
}

/** Make a key under which the server carries a command out once, however often it is sent. */
export function idempotencyKey() {
  // Not crypto.randomUUID: a page served over plain HTTP from another machine does not have it.
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Send a command; returns its record. `command` is {method, path, body}. */
export function send({ method, path, body }, csrfToken, key) {
  return request(path, {
    method,
    body: JSON.stringify(body),
    headers: { "Content-Type": "application/json", "X-CSRF-Token": csrfToken ?? "", "Idempotency-Key": key },
  });
}
