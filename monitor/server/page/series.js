// A bounded curve: increments are appended, old points are merged, so that a page left open for a week stays small.

const MAX_MARKS = 500;

function flatten(tree, prefix = "", columns = new Map()) {
  for (const [name, value] of Object.entries(tree)) {
    if (Array.isArray(value)) columns.set(prefix + name, value);
    else if (value && typeof value === "object") flatten(value, `${prefix}${name}.`, columns);
  }
  return columns;
}

const extreme = (pick) => (values) => {
  const finite = values.filter(Number.isFinite);
  return finite.length ? pick(...finite) : values.at(-1);
};

/** How two neighbours of one column become one. Non-finite values do not poison a mean: they are kept as marks. */
function merger(name) {
  if (name === "count") return (values) => values.reduce((sum, value) => sum + (value ?? 0), 0);
  if (name.endsWith("_min")) return extreme(Math.min);
  if (name.endsWith("_max")) return extreme(Math.max);
  if (name === "step" || name === "time" || name === "loss_ema" || name === "clip_threshold" || name.startsWith("lr.")) {
    return (values) => values.findLast((value) => value !== null) ?? null;
  }
  return weightedMean;
}

function weightedMean(values, weights) {
  let sum = 0;
  let weight = 0;
  values.forEach((value, index) => {
    if (Number.isFinite(value)) {
      sum += value * weights[index];
      weight += weights[index];
    }
  });
  return weight ? sum / weight : values.at(-1);
}

/** Columns of equal length, addressed as in the API with dots: `lr.0.applied`, `gpus.0.utilization_ratio`. */
export class Series {
  /**
   * @param index "step" or "time": what the rows are ordered by.
   * @param limit points that the older part is merged down to (twice that at most)
   * @param recent newest points that are never merged
   */
  constructor(index = "step", limit = 1000, recent = 500) {
    Object.assign(this, { index, limit, recent, length: 0, weights: [], columns: new Map(), marks: [] });
  }

  /** A part of a curve that does not grow any more. */
  static of(tree) {
    const series = new Series("step");
    series.append(tree);
    return series;
  }

  /** Add what /history answered for one optimizer or the system. Returns whether there was anything new. */
  append(tree) {
    const incoming = this.#unseen(flatten(tree));
    const added = incoming.get(this.index)?.length ?? 0;
    if (!added) return false;
    for (const name of incoming.keys()) {
      if (!this.columns.has(name)) this.columns.set(name, new Array(this.length).fill(null));
    }
    for (const [name, column] of this.columns) {
      const values = incoming.get(name);
      for (let row = 0; row < added; row += 1) column.push(values?.[row] ?? null);
    }
    for (let row = 0; row < added; row += 1) this.weights.push(incoming.get("count")?.[row] || 1);
    this.#mark(incoming, added);
    this.length += added;
    if (this.length > 2.5 * this.limit + this.recent) this.#compact();
    return true;
  }

  /** Leave out what came before: readings of the system go by time while the cursor counts steps, so some come twice.
   *  Where the last one is older than what is here, the clock was set back meanwhile. */
  #unseen(incoming) {
    const newest = this.get("time").at(-1);
    if (newest === undefined) return incoming;
    const times = incoming.get("time") ?? [];
    const first = times.at(-1) < newest ? times.lastIndexOf(newest) + 1 : times.findIndex((time) => time > newest);
    return new Map([...incoming].map(([name, values]) => [name, first < 0 ? [] : values.slice(first)]));
  }

  #mark(incoming, added) {
    for (const name of ["loss", "gradient_norm"]) {
      const values = incoming.get(name) ?? [];
      for (let row = 0; row < added; row += 1) {
        if (typeof values[row] === "number" && !Number.isFinite(values[row])) {
          this.marks.push({ name, value: values[row], step: incoming.get("step")?.[row] });
        }
      }
    }
    this.marks.splice(0, this.marks.length - MAX_MARKS);
  }

  #compact() {
    const end = this.length - this.recent;
    const total = this.weights.slice(0, end).reduce((sum, weight) => sum + weight, 0);
    const starts = this.#groups(end, Math.ceil(total / this.limit));
    const merge = (column, combine) => starts.map((start, number) => {
      const stop = starts[number + 1] ?? end;
      return stop - start === 1 ? column[start] : combine(column.slice(start, stop), this.weights.slice(start, stop));
    }).concat(column.slice(end));
    for (const [name, column] of this.columns) this.columns.set(name, merge(column, merger(name)));
    this.weights = merge(this.weights, (values) => values.reduce((sum, value) => sum + value, 0));
    this.length = this.weights.length;
  }

  #groups(end, target) {
    const starts = [];
    let weight = Infinity;
    for (let row = 0; row < end; row += 1) {
      if (weight + this.weights[row] > target) {
        starts.push(row);
        weight = 0;
      }
      weight += this.weights[row];
    }
    return starts;
  }

  /** Read one column (empty where the run never reported it), cut to `range` = [first row, end row]. */
  get(name, range = null) {
    const column = this.columns.get(name);
    if (!column) return [];
    return range ? column.slice(...range) : column;
  }

  /** Names below a prefix, one level down: children("lr") is ["0", "1"]. */
  children(prefix) {
    const names = new Set();
    for (const name of this.columns.keys()) {
      if (name.startsWith(`${prefix}.`)) names.add(name.slice(prefix.length + 1).split(".")[0]);
    }
    return [...names];
  }

  /** Rows whose index lies in [from, to], with one more on either side so that lines reach the edge. */
  rows(from, to) {
    const index = this.get(this.index);
    const first = index.findIndex((value) => value >= from);
    const last = index.findLastIndex((value) => value <= to);
    if (first < 0 || last < 0) return [Math.max(0, index.length - 1), index.length];
    return [Math.max(0, Math.min(first, last) - 1), Math.min(index.length, Math.max(first, last) + 2)];
  }
}
