// Draws the figures: one card a chart, with plotly where it is installed, as tables where it is not or where asked for.

import { h, setAttribute, setText } from "./dom.js";
import * as figures from "./figures.js";

const TABLE_ROWS = 25;

const CHARTS = [
  { id: "loss", title: "Loss", size: "wide", build: figures.loss, hasLog: true },
  { id: "learning-rate", title: "Learning rate", size: "half", build: figures.learningRate, hasLog: true, exponent: "e" },
  { id: "gradient-norm", title: "Gradient norm", size: "half", build: figures.gradientNorm, hasLog: true, isLog: true },
  { id: "step-time", title: "Step time", unit: "ms", size: "wide", build: figures.stepTime, fromZero: true },
  { id: "utilization", title: "GPU and CPU", unit: "%", size: "half", build: figures.utilization, isTime: true, range: [0, 101] },
  { id: "memory", title: "Memory", unit: "GiB", size: "half", build: figures.memory, isTime: true, fromZero: true },
];

/** Read the palette from the style sheet, so that charts follow light and dark like everything else. */
export function readTheme() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(`--${name}`).trim();
  const theme = Object.fromEntries(["text", "muted", "surface", "grid", "line", "accent", "critical", "warning", "info"].map((name) => [name, read(name)]));
  for (const [name, value] of Object.entries(theme)) if (/^#...$/.test(value)) theme[name] = value.replace(/[^#]/g, "$&$&");
  return { ...theme, series: [1, 2, 3, 4, 5, 6, 7, 8].map((number) => read(`series-${number}`)) };
}

/** Load plotly from this server; null where it is not installed. */
export function loadPlotly() {
  return new Promise((resolve) => {
    const script = h("script", { src: "static/plotly.min.js", onload: () => resolve(window.Plotly ?? null), onerror: () => resolve(null) });
    document.head.append(script);
  });
}

/** Whether all curves have one height throughout: plotly would draw 1e-3 at the height of 0, on an axis from -1 to 1. */
function isFlat({ traces }) {
  const heights = traces.filter(({ yaxis }) => yaxis !== "y2").flatMap(({ y }) => y.filter(Number.isFinite));
  return heights.every((height) => height === heights[0]);
}

class ChartCard {
  constructor(spec, callbacks) {
    Object.assign(this, { spec, callbacks, isLog: Boolean(spec.isLog), isTable: false, isVisible: true, isHeld: false, isDirty: false, view: null });
    const { id, title, unit } = spec;
    this.plot = h("div", { class: "plot", role: "img", "aria-labelledby": `${id}-summary` });
    this.summary = h("p", { class: "visually-hidden", id: `${id}-summary` }, `${title}: no data yet.`);
    this.legend = h("ul", { class: "legend", "aria-hidden": "true" });
    this.empty = h("p", { class: "empty" }, "Waiting for the first answer of the run.");
    this.table = h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${title}: table` });
    this.note = h("p", { class: "note" });
    this.logButton = spec.hasLog ? this.#toggle("Log scale", `Logarithmic scale: ${title}`, "isLog") : null;
    this.tableButton = this.#toggle("Table", `Show as a table: ${title}`, "isTable");
    const heading = h("h2", { id: `${id}-title` }, title, unit ? h("small", {}, `in ${unit}`) : null);
    this.element = h("section", { class: "card chart", id: `chart-${id}`, "data-size": spec.size, "aria-labelledby": `${id}-title` },
      h("div", { class: "card-head" }, heading, this.logButton, this.tableButton),
      this.summary, this.legend, this.empty, this.plot, this.table, this.note);
    this.#holdWhileDragging();
  }

  #toggle(label, description, flag) {
    const button = h("button", { type: "button", class: "quiet", "aria-pressed": String(this[flag]), "aria-label": description }, label);
    button.addEventListener("click", () => {
      this[flag] = !this[flag];
      setAttribute(button, "aria-pressed", this[flag]);
      this.draw();
    });
    return button;
  }

  /** A redraw in the middle of a drag would end the drag. */
  #holdWhileDragging() {
    this.plot.addEventListener("pointerdown", () => { this.isHeld = true; }, true);
    for (const name of ["pointerup", "pointercancel"]) {
      window.addEventListener(name, () => {
        if (!this.isHeld) return;
        this.isHeld = false;
        setTimeout(() => this.isDirty && this.draw(), 400);
      }, true);
    }
  }

  update(view) {
    this.view = view;
    if (this.isHeld) this.isDirty = true;
    else this.draw();
  }

  draw() {
    if (!this.view) return;
    this.isDirty = !this.isVisible; // words are kept up to date everywhere, drawing waits until it can be seen
    const { plotly } = this.callbacks;
    const figure = this.spec.build({ ...this.view, isLog: this.isLog });
    const asTable = this.isTable || !plotly();
    this.empty.hidden = !figure.empty;
    this.plot.hidden = Boolean(figure.empty) || asTable;
    this.table.hidden = Boolean(figure.empty) || !asTable;
    this.legend.hidden = this.plot.hidden;
    this.tableButton.hidden = !plotly();
    if (this.logButton) this.logButton.hidden = asTable;
    if (figure.empty) setText(this.empty, figure.empty);
    setText(this.summary, figure.summary ?? `${this.spec.title}: ${figure.empty}`);
    setText(this.note, figure.note ?? "");
    this.note.hidden = !figure.note;
    if (figure.empty) return;
    if (asTable) this.#tabulate(figure.table);
    else if (this.isVisible) this.#plot(plotly(), figure);
  }

  #tabulate(columns) {
    const filled = columns.filter(({ values }, order) => order === 0 || values.some((value) => value !== null));
    const length = columns[0].values.length;
    const rows = [];
    for (let row = length - 1; row >= Math.max(0, length - TABLE_ROWS); row -= 1) {
      rows.push(h("tr", {}, filled.map(({ values, write }, order) => h(order ? "td" : "th", order ? {} : { scope: "row" }, write(values[row] ?? null)))));
    }
    const [first, last] = [columns[0].values[0], columns[0].values.at(-1)];
    const stride = this.spec.isTime ? 1 : Math.round((last - first) / Math.max(1, length - 1));
    const caption = `The newest ${rows.length} of ${length} points${stride > 1 ? `, each of about ${stride} steps` : ""}`;
    this.table.replaceChildren(h("table", {}, h("caption", {}, caption),
      h("thead", {}, h("tr", {}, filled.map(({ title }) => h("th", { scope: "col" }, title)))), h("tbody", {}, rows)));
  }

  #plot(plotly, figure) {
    this.#drawLegend(figure.legend);
    const isFirst = !this.plot.classList.contains("js-plotly-plot");
    plotly.react(this.plot, figure.traces, this.#layout(figure), { displayModeBar: false, responsive: true, doubleClick: false, showTips: false });
    if (isFirst && !this.spec.isTime) {
      this.plot.on("plotly_relayout", (change) => {
        if ("xaxis.range[0]" in change) this.callbacks.onZoom([change["xaxis.range[0]"], change["xaxis.range[1]"]]);
      });
      this.plot.on("plotly_doubleclick", () => this.callbacks.onZoom(null));
    }
  }

  #layout(figure) {
    const { theme, zoom } = this.view;
    const { spec } = this;
    const axis = { gridcolor: theme.grid, linecolor: theme.line, zeroline: false, tickfont: { size: 11, color: theme.muted }, automargin: true };
    const steps = this.view.series.get("step");
    const last = [steps, ...this.view.abandoned.map((part) => part.get("step"))].reduce((most, one) => Math.max(most, one.at(-1)), steps[0] + 1);
    const xRange = spec.isTime ? { autorange: true } : { range: zoom ? [...zoom] : [steps[0], last], autorange: false };
    const y = this.isLog && spec.hasLog ? { type: "log", exponentformat: spec.exponent ?? "power", nticks: 5 } : { type: "linear", exponentformat: spec.exponent ?? "none" };
    return {
      margin: { l: 44, r: 10, t: 12, b: 24 }, autosize: true, showlegend: false, hovermode: "x unified", dragmode: "zoom",
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", shapes: figure.shapes,
      font: { family: "system-ui, -apple-system, 'Segoe UI', 'Liberation Sans', sans-serif", size: 12, color: theme.text },
      hoverlabel: { bgcolor: theme.surface, bordercolor: theme.line, font: { color: theme.text }, namelength: 40 },
      xaxis: { ...axis, ...xRange, type: spec.isTime ? "date" : "linear", separatethousands: true, nticks: 7, tickangle: 0, showgrid: false, ...(spec.isTime ? { fixedrange: true, tickangle: 0, nticks: 5 } : { hoverformat: ",d", tickformat: ",~r", unifiedhovertitle: { text: "step %{x:,d}" } }) },
      yaxis: { ...axis, nticks: 6, ...y, fixedrange: true, separatethousands: true, ...(spec.range ? { range: spec.range } : {}), ...(spec.fromZero || isFlat(figure) ? { rangemode: "tozero" } : {}) },
      yaxis2: { overlaying: "y", range: [0, 1], visible: false, fixedrange: true },
    };
  }

  #drawLegend(entries) {
    const key = JSON.stringify(entries);
    if (key === this.legendKey) return;
    this.legendKey = key;
    this.legend.replaceChildren(...entries.map(({ label, color, kind }) => h("li", {}, swatch(color, kind), label)));
  }
}

function swatch(color, kind) {
  const create = (tag, attributes) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };
  const shape = {
    area: ["rect", { x: 1, y: 0, width: 18, height: 10, rx: 2, fill: color, opacity: 0.45 }],
    cross: ["path", { d: "M6 1 14 9M14 1 6 9", stroke: color, "stroke-width": 2.5 }],
    faint: ["path", { d: "M1 5H19", stroke: color, "stroke-width": 1.5, opacity: 0.5 }],
    strong: ["path", { d: "M1 5H19", stroke: color, "stroke-width": 3 }],
    dot: ["path", { d: "M1 5H19", stroke: color, "stroke-width": 1.5, "stroke-dasharray": "2 2" }],
    dash: ["path", { d: "M1 5H19", stroke: color, "stroke-width": 2, "stroke-dasharray": "5 3" }],
  }[kind] ?? ["path", { d: "M1 5H19", stroke: color, "stroke-width": 2 }];
  const svg = create("svg", { viewBox: "0 0 20 10" });
  svg.append(create(...shape));
  return svg;
}

/** All charts of the page: hand them a view; those on screen are drawn at once, the others when they come into sight. */
export class Charts {
  /** @param onZoom called with [from, to] in steps, or null, when somebody drags over a chart */
  constructor(container, onZoom) {
    this.plotly = null;
    const callbacks = { plotly: () => this.plotly, onZoom };
    this.cards = CHARTS.map((spec) => new ChartCard(spec, callbacks));
    container.replaceChildren(...this.cards.map((card) => card.element));
    const observer = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        const card = this.cards.find(({ element }) => element === entry.target);
        card.isVisible = entry.isIntersecting;
        if (card.isVisible && card.isDirty && !card.isHeld) card.draw();
      }
    }, { rootMargin: "200px" });
    for (const card of this.cards) observer.observe(card.element);
  }

  update(view) {
    for (const card of this.cards) card.update(view);
  }

  use(plotly) {
    this.plotly = plotly;
    for (const card of this.cards) card.draw();
  }
}
