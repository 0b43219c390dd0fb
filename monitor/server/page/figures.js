// What each chart shows: pure functions from a view of the run to traces, legend, table and a sentence. No drawing here.

import { bytes, duration, integer, number, percent, ranges, rate } from "./format.js";

const MAX_LINES = 8;
const MAX_BINS = 300;
const MAX_MARKS = 40;
const GIBIBYTE = 1024 ** 3;
const RANK = { critical: 2, warning: 1, info: 0 };

/** Plotly reads a little markup in names and hover texts: what the server sent must stay text. */
export function plain(text) {
  return String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

const finite = (values) => values.filter(Number.isFinite);
const least = (values) => values.reduce((least, value) => Math.min(least, value), Infinity);
const most = (values) => values.reduce((most, value) => Math.max(most, value), -Infinity);
const shown = (values, isLog) => values.map((value) => (Number.isFinite(value) && (!isLog || value > 0) ? value : null));
const has = (values) => values.some((value) => value !== null && value !== undefined);

function line(name, x, y, color, options = {}) {
  const { dash = "solid", width = 1.8, opacity = 1, hover = "%{y:.4~g}" } = options;
  return { type: "scatter", mode: "lines", name: plain(name), x, y, opacity, line: { color, width, dash },
    hovertemplate: `${hover}<extra>${plain(name)}</extra>` };
}

/** The points of a curve that was measured now and then: between two of them it is drawn, NaN and Inf interrupt it. */
function measured(x, y, isLog) {
  const rows = x.map((_, row) => row).filter((row) => y[row] !== null && y[row] !== undefined);
  return [rows.map((row) => x[row]), shown(rows.map((row) => y[row]), isLog)];
}

/** The area between two curves, drawn from the points where both are known. */
function band(x, low, high, color) {
  const rows = x.map((_, row) => row).filter((row) => low[row] !== null && high[row] !== null);
  const edge = (values, fill) => ({
    type: "scatter", mode: "lines", hoverinfo: "skip", x: rows.map((row) => x[row]), y: rows.map((row) => values[row]),
    line: { width: 0, color }, ...(fill ? { fill: "tonexty", fillcolor: transparent(color, 0.18) } : {}),
  });
  return [edge(low, false), edge(high, true)];
}

function transparent(hex, alpha) {
  const channel = (start) => parseInt(hex.slice(start, start + 2), 16);
  return `rgba(${channel(1)}, ${channel(3)}, ${channel(5)}, ${alpha})`;
}

/**
 * Thin rows to about `MAX_BINS`: returns a reader `(name, combine)` of columns, so that a chart a few hundred pixels wide
 * neither blurs nor costs more than it shows.
 */
function binned(series, rows) {
  const length = series.get("step", rows).length;
  const size = Math.ceil(length / MAX_BINS);
  return (name, combine) => {
    const values = series.get(name, rows);
    if (size < 2 || !values.length) return values;
    return Array.from({ length: Math.ceil(length / size) }, (_, bin) => {
      const known = finite(values.slice(bin * size, (bin + 1) * size));
      return known.length ? combine(known) : null;
    });
  };
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const lastOf = (values) => values[values.length - 1];

/** Events as vertical lines with a mark on top; the gravest ones first when there are too many to read. */
function eventMarks(events, steps, theme) {
  if (!steps.length) return { traces: [], shapes: [] };
  const [from, to] = [least(finite(steps)), most(finite(steps))];
  const inside = events.filter((event) => event.kind !== "state" && event.step >= from && event.step <= to)
    .sort((a, b) => RANK[b.severity] - RANK[a.severity] || b.step - a.step).slice(0, MAX_MARKS);
  const color = (event) => (event.kind === "control" ? theme.accent : theme[event.severity] ?? theme.info);
  const shapes = inside.filter((event) => event.severity !== "info" || event.kind === "control").map((event) => ({
    type: "line", xref: "x", yref: "paper", x0: event.step, x1: event.step, y0: 0, y1: 1, layer: "below",
    line: { color: color(event), width: 1, dash: "dot" },
  }));
  const spans = inside.filter((event) => event.severity !== "info" && event.start_step < event.step).map((event) => ({
    type: "rect", xref: "x", yref: "paper", x0: Math.max(event.start_step, from), x1: event.end_step ?? to, y0: 0, y1: 1,
    layer: "below", line: { width: 0 }, fillcolor: transparent(color(event), 0.09),
  }));
  const marks = {
    type: "scatter", mode: "markers", name: "events", x: inside.map((event) => event.step), y: inside.map(() => 1), yaxis: "y2",
    marker: { size: 9, color: inside.map(color), symbol: inside.map(symbol) }, cliponaxis: false,
    text: inside.map((event) => wrap(`${event.kind.replaceAll("_", " ")}: ${event.message}`)), hovertemplate: "%{text}<extra></extra>",
  };
  return { traces: inside.length ? [marks] : [], shapes: [...spans, ...shapes] };
}

const symbol = (event) => (event.kind === "control" ? "square" : { critical: "triangle-up", warning: "diamond" }[event.severity] ?? "circle");

function wrap(text, width = 56) {
  const lines = [];
  for (const word of text.split(/\s+/)) {
    const last = lines[lines.length - 1];
    if (last !== undefined && last.length + word.length < width) lines[lines.length - 1] = `${last} ${word}`;
    else lines.push(word);
  }
  return lines.slice(0, 6).map(plain).join("<br>");
}

/** Steps whose value was NaN or Inf: crosses on the last finite value before them, for there is no other height. */
function nonfiniteMarks(series, name, steps, values, theme) {
  const [from, to] = [steps[0], steps.at(-1)];
  const marks = series.marks.filter((mark) => mark.name === name && mark.step >= from && mark.step <= to);
  const fallback = finite(values)[0] ?? 1;
  const heights = marks.map((mark) => {
    let row = steps.findLastIndex((step) => step <= mark.step);
    while (row >= 0 && !Number.isFinite(values[row])) row -= 1;
    return row < 0 ? fallback : values[row];
  });
  if (!marks.length) return [];
  return [{
    type: "scatter", mode: "markers", name: "not finite", x: marks.map((mark) => mark.step), y: heights,
    marker: { symbol: "x", size: 9, color: theme.critical, line: { width: 1, color: theme.surface } },
    text: marks.map((mark) => number(mark.value)), hovertemplate: "%{text}<extra>not finite</extra>",
  }];
}

/** Thin grey lines of what was done over once training had gone back to an earlier step, to be drawn behind the curves. */
function doneOver(parts, names, theme, isLog) {
  const drawn = parts.flatMap((part) => {
    const name = names.find((one) => has(part.get(one)));
    return name ? [line("earlier attempt", ...measured(part.get("step"), part.get(name), isLog), theme.muted, { width: 1.4, dash: "dot", opacity: 0.75 })] : [];
  });
  return { traces: drawn, legend: drawn.length ? [legend("earlier attempt, done over", theme.muted, "dot")] : [] };
}

/** Which steps those were, in words. */
function doneOverWords(parts) {
  if (!parts.length) return "";
  const spans = parts.map((part) => `${integer(part.get("step")[0])} to ${integer(part.get("step").at(-1))}`);
  return ` Done over, and grey: steps ${spans.join(", ")}.`;
}

const legend = (label, color, kind = "solid") => ({ label, color, kind });
const over = (steps) => `from step ${integer(steps[0])} to ${integer(steps.at(-1))}`;
const column = (title, values, write = number) => ({ title, values, write });

export function loss({ series, abandoned, rows, isLog, theme, events }) {
  const read = (name) => series.get(name, rows);
  const [steps, raw, smooth] = [read("step"), read("loss"), read("loss_ema")];
  if (!has(raw) && !has(smooth)) return { empty: "No loss yet: it appears with the first optimizer step after a backward pass." };
  const [low, high] = [shown(read("loss_min"), isLog), shown(read("loss_max"), isLog)];
  const base = has(smooth) ? smooth : raw;
  const marks = eventMarks(events, steps, theme);
  const bad = nonfiniteMarks(series, "loss", steps, shown(base, isLog), theme);
  const values = finite(raw.length ? raw : smooth);
  const earlier = doneOver(abandoned, ["loss_ema", "loss"], theme, isLog);
  const isEmptyLog = isLog && !shown(base, true).some((value) => value !== null);
  return {
    traces: [
      ...earlier.traces,
      ...(has(low) && has(high) ? band(steps, low, high, theme.series[0]) : []),
      line("loss", steps, shown(raw, isLog), theme.series[0], { opacity: 0.45, width: 1 }),
      line("smoothed", steps, shown(smooth, isLog), theme.series[0], { width: 2.4 }), ...bad, ...marks.traces,
    ],
    shapes: marks.shapes,
    legend: [legend("loss", theme.series[0], "faint"), legend("smoothed", theme.series[0], "strong"),
      ...(has(low) ? [legend("lowest to highest", theme.series[0], "area")] : []), ...earlier.legend,
      ...(bad.length ? [legend("NaN or Inf", theme.critical, "cross")] : [])],
    note: isEmptyLog ? "A logarithmic scale cannot show losses of zero or less: switch it off to see them." : "",
    summary: `Loss ${over(steps)}: last ${number(raw.at(-1))}, smoothed ${number(smooth.at(-1) ?? null)}, lowest ` +
      `${number(values.length ? least(values) : null)}, highest ${number(values.length ? most(values) : null)}` +
      (bad.length ? `, ${bad[0].x.length} steps not finite.` : ".") + doneOverWords(abandoned),
    table: [column("Step", steps, integer), column("Loss", raw), column("Smoothed", smooth),
      column("Lowest", read("loss_min")), column("Highest", read("loss_max"))],
  };
}

const same = (a, b) => a.length === b.length && a.every((value, row) => value === b[row]);

/** Param groups whose curves coincide are one line: 64 groups on one schedule are one line with 64 names. */
function distinctGroups(series, rows) {
  const lines = [];
  for (const index of series.children("lr").map(Number).sort((a, b) => a - b)) {
    const applied = series.get(`lr.${index}.applied`, rows);
    const scheduled = series.get(`lr.${index}.scheduled`, rows);
    const twin = lines.find((other) => same(other.applied, applied) && same(other.scheduled, scheduled));
    if (twin) twin.indices.push(index);
    else lines.push({ indices: [index], applied, scheduled });
  }
  return lines;
}

function groupLabel(indices, groups) {
  const names = indices.map((index) => groups.find((group) => group.index === index)?.name);
  if (indices.length <= 3 && names.every(Boolean)) return indices.map((index, order) => `${index} ${names[order]}`).join(", ");
  return indices.length === 1 ? `group ${indices[0]}` : `groups ${ranges(indices)}`;
}

export function learningRate({ series, abandoned, rows, isLog, theme, events, groups }) {
  const steps = series.get("step", rows);
  const all = distinctGroups(series, rows).filter(({ applied }) => has(applied));
  if (!all.length && steps.length) return { empty: "No learning rate in the param groups: the optimizer derives it itself." };
  if (!all.length) return { empty: "No learning rate yet: it appears with the first optimizer step." };
  const lines = all.slice(0, MAX_LINES);
  const label = ({ indices }) => groupLabel(indices, groups);
  const differs = ({ applied, scheduled }) => has(scheduled) && !same(applied, scheduled);
  const marks = eventMarks(events.filter((event) => event.kind === "control"), steps, theme);
  const earlier = doneOver(abandoned, lines.map(({ indices }) => `lr.${indices[0]}.applied`), theme, isLog);
  const coinciding = lines.filter(({ indices }) => indices.length > 1).length;
  const notes = [
    coinciding ? "Param groups on the same curve share a line." : "",
    all.length > lines.length ? `${lines.length} of ${all.length} different curves are drawn.` : "",
  ];
  return {
    traces: [
      ...earlier.traces,
      ...lines.flatMap((one, order) => [
        ...(differs(one) ? [line(`${label(one)}, scheduled`, steps, shown(one.scheduled, isLog), theme.series[order], { dash: "dash", width: 1.4 })] : []),
        line(label(one), steps, shown(one.applied, isLog), theme.series[order], { width: 2 }),
      ]),
      ...marks.traces,
    ],
    shapes: marks.shapes,
    legend: [...lines.map((one, order) => legend(label(one), theme.series[order])),
      ...(lines.some(differs) ? [legend("scheduled", theme.muted, "dash")] : []), ...earlier.legend],
    note: notes.filter(Boolean).join(" "),
    summary: `Learning rate ${over(steps)}, last applied: ` +
      `${lines.map((one) => `${label(one)} ${rate(one.applied.at(-1))}`).join("; ")}.`,
    table: [column("Step", steps, integer), ...lines.flatMap((one) => [column(label(one), one.applied, rate),
      ...(differs(one) ? [column(`${label(one)}, scheduled`, one.scheduled, rate)] : [])])],
  };
}

export function gradientNorm({ series, abandoned, rows, isLog, theme, events, optimizer }) {
  const read = binned(series, rows);
  const [steps, norm, lowest] = [read("step", lastOf), read("gradient_norm", mean), read("gradient_norm", least)];
  const [highest, threshold] = [read("gradient_norm_max", most), read("clip_threshold", lastOf)];
  if (!has(norm) && !series.marks.some(({ name }) => name === "gradient_norm")) {
    const reason = optimizer?.gradient_norm_reason;
    return { empty: reason ? `No gradient norm: ${reason}.` : "No gradient norm yet." };
  }
  const marks = eventMarks(events.filter((event) => /gradient|clipping|nonfinite/.test(event.kind)), steps, theme);
  const earlier = doneOver(abandoned, ["gradient_norm"], theme, isLog);
  const bad = nonfiniteMarks(series, "gradient_norm", steps, shown(norm, isLog), theme);
  return {
    traces: [
      ...earlier.traces,
      ...(has(highest) ? band(steps, shown(lowest, isLog), shown(highest, isLog), theme.series[3]) : []),
      line("gradient norm", ...measured(steps, norm, isLog), theme.series[3]),
      ...(has(threshold) ? [line("clip threshold", steps, shown(threshold, isLog), theme.series[1], { dash: "dash", width: 2.2 })] : []),
      ...bad, ...marks.traces,
    ],
    shapes: marks.shapes,
    legend: [legend("before clipping", theme.series[3]), ...(has(highest) ? [legend("lowest to highest", theme.series[3], "area")] : []),
      ...(has(threshold) ? [legend("clip threshold", theme.series[1], "dash")] : []),
      ...(bad.length ? [legend("NaN or Inf", theme.critical, "cross")] : []), ...earlier.legend],
    summary: `Gradient norm before clipping ${over(steps)}: last ${number(norm.at(-1))}` +
      (has(threshold) ? `, clip threshold ${number(threshold.at(-1))}.` : ", no clipping seen."),
    table: [column("Step", steps, integer), column("Gradient norm", norm), column("Highest", highest), column("Clip threshold", threshold)],
  };
}

const PHASES = ["data", "forward", "backward", "optimizer", "monitor", "other"];

export function stepTime({ series, rows, theme, events }) {
  const read = binned(series, rows);
  const [steps, total] = [read("step", lastOf), read("step_seconds", mean)];
  // Of the first step of a session only the part that was seen is known: drawn, it would be a dip.
  const times = Object.fromEntries(PHASES.map((phase) => [phase, read(`phases.${phase}`, mean).map((value, row) => (Number.isFinite(total[row]) ? value : null))]));
  const phases = PHASES.filter((phase) => times[phase].some((value) => value > 0));
  if (!has(total) && !phases.length) return { empty: "No step time yet: it needs two steps." };
  const millis = (values) => values.map((value) => (Number.isFinite(value) ? value * 1e3 : null));
  const marks = eventMarks(events.filter((event) => /stall|slowdown/.test(event.kind)), steps, theme);
  const colorOf = (phase) => theme.series[PHASES.indexOf(phase)];
  const areas = phases.map((phase) => ({
    ...line(phase, steps, millis(times[phase]), colorOf(phase), { width: 0.5, hover: "%{y:.3~g} ms" }),
    stackgroup: "phases", stackgaps: "interpolate", fillcolor: transparent(colorOf(phase), 0.55),
  }));
  return {
    traces: [...areas, line("whole step", steps, millis(total), theme.text, { width: 1.2, hover: "%{y:.3~g} ms" }), ...marks.traces],
    shapes: marks.shapes,
    legend: [...phases.map((phase) => legend(phase, colorOf(phase), "area")), legend("whole step", theme.text)],
    summary: `Step time ${over(steps)}: last ${duration(total.at(-1))}; ` +
      `${phases.map((phase) => `${phase} ${duration(times[phase].at(-1))}`).join(", ")}.`,
    table: [column("Step", steps, integer), column("Whole step", total, duration),
      ...phases.map((phase) => column(phase, times[phase], duration))],
  };
}

/** Plotly shows numbers as UTC; people want their own clock. */
const localTimes = (times) => times.map((time) => (time - new Date(time * 1000).getTimezoneOffset() * 60) * 1000);
const timeOfDay = (time) => new Date(time * 1000).toLocaleTimeString("en-GB");

function systemFigure({ system, theme, isOver }, curves, scale, write, what) {
  const times = system.get("time");
  const known = curves.filter(({ name }) => has(system.get(name)));
  const drawn = known.slice(0, MAX_LINES);
  if (!drawn.length) return { empty: isOver ? `No readings of ${what.toLowerCase()} were kept of this run.` : `No reading of ${what.toLowerCase()} yet.` };
  const x = localTimes(times);
  return {
    traces: drawn.map(({ label, name }, order) => line(label, x, system.get(name).map((value) => (Number.isFinite(value) ? value * scale : null)), theme.series[order])),
    shapes: [],
    legend: drawn.map(({ label }, order) => legend(label, theme.series[order])),
    note: known.length > drawn.length ? `${drawn.length} of ${known.length} curves are drawn.` : "",
    summary: `${what}, last reading: ${drawn.map(({ label, name }) => `${label} ${write(system.get(name).at(-1))}`).join(", ")}.`,
    table: [column("Time", times, timeOfDay), ...drawn.map(({ label, name }) => column(label, system.get(name), write))],
  };
}

const gpuCurves = (view, reading) => view.system.children("gpus").map((gpu) => ({ label: `GPU ${gpu}`, name: `gpus.${gpu}.${reading}` }));

export function utilization(view) {
  return systemFigure(view, [...gpuCurves(view, "utilization_ratio"), { label: "CPU of the host", name: "cpu_ratio" }], 100, percent, "Utilization");
}

export function memory(view) {
  return systemFigure(view, [...gpuCurves(view, "memory_used_bytes"), { label: "host", name: "memory_used_bytes" },
    { label: "training processes", name: "tree_resident_bytes" }], 1 / GIBIBYTE, bytes, "Memory in use");
}
