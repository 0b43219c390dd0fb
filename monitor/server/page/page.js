// The page: asks the run for what is new, keeps a bounded picture of it, and hands it to the parts.

import { get, serverTime } from "./api.js";
import { Charts, loadPlotly, readTheme } from "./charts.js";
import { undoable } from "./changes.js";
import { ControlCard } from "./control.js";
import { renderDetails } from "./details.js";
import { RanksCard } from "./ranks.js";
import { byId, h, icon, setText } from "./dom.js";
import { EventList, EventStore, MAX_EVENTS, ongoing } from "./events.js";
import { duration, integer, number, words } from "./format.js";
import { Series } from "./series.js";
import { receiveCsrf } from "./session.js";
import { isEnded, Strip } from "./strip.js";

const POLL_MS = 1000;
const HIDDEN_POLL_MS = 10_000;
const ENDED_POLL_MS = 5000;
const MAX_BACKOFF_MS = 15_000;
const STALE_SECONDS = 5;
const FIRST_POINTS = 2000;
const MORE_POINTS = 1000;

/** Everything known about one run; another run on the same port gets a new one. */
class Picture {
  constructor() {
    Object.assign(this, { run: null, system: new Series("time"), events: new EventStore() });
    this.forgetCurves();
  }

  /** Training has gone back to an earlier step: what is here is in part done over. */
  forgetCurves() {
    Object.assign(this, { cursor: 0, attempt: 0, curves: new Map(), abandoned: new Map() });
  }

  /** Whether an answer is of the run that is shown, and of the same session of it: another one counts anew. */
  isOf({ run }) {
    return !this.run || (this.run.run.run_id === run.run_id && this.run.run.resume_time === run.resume_time);
  }

  addHistory(history) {
    this.attempt = history.attempt;
    for (const [key, parts] of Object.entries(history.abandoned)) this.abandoned.set(key, parts.map(Series.of));
    for (const [key, columns] of Object.entries(history.optimizers)) {
      if (!this.curves.has(key)) this.curves.set(key, new Series("step"));
      this.curves.get(key).append(columns);
    }
    this.system.append(history.system ?? {});
    this.cursor = history.next;
  }
}

class Page {
  constructor() {
    Object.assign(this, {
      picture: new Picture(), chosen: null, zoom: null, range: "all", failures: 0, answeredAt: null, problem: "", theme: readTheme(), noticeKey: "", timer: 0,
    });
    this.strip = new Strip();
    this.charts = new Charts(byId("cards"), (zoom) => this.#setZoom(zoom));
    this.control = new ControlCard(byId("control"));
    this.ranks = new RanksCard(byId("ranks"));
    this.eventList = this.#makeEventList();
    this.#listen();
  }

  start() {
    receiveCsrf();
    this.#poll();
    setInterval(() => this.#tick(), 500);
    loadPlotly().then((plotly) => plotly && this.charts.use(plotly));
  }

  #listen() {
    byId("optimizer").addEventListener("change", (event) => {
      this.chosen = event.target.value;
      this.#render();
    });
    byId("range").addEventListener("change", (event) => {
      this.range = event.target.value;
      this.#setZoom(null);
    });
    byId("reset-zoom").addEventListener("click", () => this.#setZoom(null));
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) this.#poll();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      this.theme = readTheme();
      this.#renderCharts();
    });
  }

  // Asking

  async #poll() {
    if (this.isPolling) return;
    this.isPolling = true;
    clearTimeout(this.timer);
    try {
      await this.#fetchNews();
      Object.assign(this, { failures: 0, answeredAt: performance.now(), problem: "" });
    } catch (failure) {
      if (failure.status === undefined) console.error(failure); // a mistake of the page, not of the run
      this.failures += 1;
      this.problem = failure.status === 401 || failure.status === 403 ? failure.message : "";
    }
    this.isPolling = false;
    this.#tick();
    this.timer = setTimeout(() => this.#poll(), this.#pause());
  }

  #pause() {
    if (this.failures) return Math.min(MAX_BACKOFF_MS, POLL_MS * 2 ** (this.failures - 1));
    if (document.hidden) return HIDDEN_POLL_MS;
    return isEnded(this.picture.run) ? ENDED_POLL_MS : POLL_MS;
  }

  /** Ask for everything at once: a run that ends answers for a moment only, and its last state must not wait for its curves. */
  async #fetchNews() {
    if (this.failures) await get("/run"); // knock first: one request that fails says as much as three
    const { cursor, events } = this.picture;
    const [run, history, happened] = await Promise.allSettled([
      get("/run"),
      get("/history", { since: cursor, points: cursor ? MORE_POINTS : FIRST_POINTS }),
      get("/events", { since: events.next, limit: MAX_EVENTS }),
    ]);
    if (run.status === "rejected") throw run.reason;
    if (!this.picture.isOf(run.value)) {
      this.#startOver();
      return this.#fetchNews();
    }
    if (cursor && history.value && history.value.attempt !== this.picture.attempt) {
      this.picture.forgetCurves();
      return this.#fetchNews();
    }
    this.#take(run.value, history.value, happened.value);
    for (const { reason } of [history, happened]) if (reason) throw reason;
    return null;
  }

  #take(run, history, happened) {
    const { picture } = this;
    const isFirst = picture.run === null;
    if (history) picture.addHistory(history);
    const fresh = happened ? picture.events.add(happened) : [];
    picture.run = run;
    this.#render();
    if (!happened?.events.length && !isFirst) return;
    this.eventList.update(picture.events, isFirst ? [] : fresh, run.optimizers.length > 1);
    this.control.setUndoable(undoable(picture.events.all));
  }

  async #loadEarlier() {
    const { events, run } = this.picture;
    events.addEarlier(await get("/events", { before: events.earlier, limit: MAX_EVENTS }));
    this.eventList.update(events, [], run.optimizers.length > 1);
  }

  #startOver() {
    Object.assign(this, { picture: new Picture(), chosen: null, zoom: null });
    this.control = new ControlCard(byId("control"));
    this.eventList = this.#makeEventList();
  }

  #makeEventList() {
    return new EventList(byId("events"), (event) => this.#show(event), () => this.#loadEarlier());
  }

  // Showing

  get #optimizer() {
    const { optimizers } = this.picture.run;
    return optimizers.find(({ key }) => key === this.chosen) ?? optimizers[0] ?? null;
  }

  #render() {
    const { run } = this.picture;
    this.#renderPicker(run);
    this.strip.update(run, this.#optimizer);
    this.control.update(run);
    this.ranks.update(run);
    renderDetails(byId("details"), run, this.#optimizer);
    this.#renderCharts();
  }

  #renderPicker({ optimizers }) {
    const select = byId("optimizer");
    byId("optimizer-picker").hidden = optimizers.length < 2;
    if (select.options.length !== optimizers.length) select.replaceChildren(...optimizers.map(({ key }) => h("option", { value: key }, key)));
    if (this.#optimizer) select.value = this.#optimizer.key;
  }

  #renderCharts() {
    const { run, curves, abandoned, system, events } = this.picture;
    if (!run) return;
    const optimizer = this.#optimizer;
    const series = curves.get(optimizer?.key) ?? new Series("step");
    const zoom = this.zoom ?? this.#follow(series);
    const relevant = events.all.filter((event) => event.optimizer === null || event.optimizer === optimizer?.key);
    byId("reset-zoom").hidden = !this.zoom;
    this.charts.update({ series, abandoned: abandoned.get(optimizer?.key) ?? [], system, zoom, rows: zoom ? series.rows(...zoom) : null, optimizer, groups: optimizer?.groups ?? [], events: relevant, theme: this.theme, isOver: isEnded(run) });
  }

  /** The steps that the chosen range shows: null is all of them. */
  #follow(series) {
    const steps = series.get("step");
    if (this.range === "all" || steps.length < 2) return null;
    const last = steps.at(-1);
    const span = this.range === "tenth" ? Math.max(20, (last - steps[0]) / 10) : Number(this.range);
    return [Math.max(steps[0], last - span), last];
  }

  #setZoom(zoom) {
    this.zoom = zoom;
    this.#renderCharts();
  }

  #show(event) {
    const margin = Math.max(50, (event.step - event.start_step) * 2);
    this.#setZoom([Math.max(0, event.start_step - margin), (event.end_step ?? event.step) + margin]);
    byId("charts").focus({ preventScroll: true });
    byId("chart-loss").scrollIntoView({ block: "nearest", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
  }

  // What needs a person

  #tick() {
    const { run } = this.picture;
    const silent = this.answeredAt === null ? 0 : (performance.now() - this.answeredAt) / 1000;
    const patience = STALE_SECONDS + (this.failures || !document.hidden ? 0 : HIDDEN_POLL_MS / 1000);
    const isSilent = this.failures > 0 && (silent > patience || this.answeredAt === null);
    this.strip.showState(run, isSilent ? silent : null);
    this.strip.tick(run, serverTime());
    this.control.setSilent(isSilent);
    this.#renderNotices(this.#notices(run, isSilent ? silent : null));
  }

  #notices(run, silent) {
    const notices = [];
    if (this.problem) notices.push({ kind: "warning", title: "Not let in", text: this.problem, action: ["Log in", () => location.reload()] });
    else if (silent !== null && isEnded(run)) notices.push({ kind: "info", title: "The server has gone with the run", text: "What you see is its last state." });
    else if (silent !== null) notices.push({ kind: "warning", title: run ? `No answer for ${duration(Math.floor(silent))}` : "No answer", text: run ? "The figures below are the last known ones. The page keeps trying." : "The page keeps trying to reach the run." });
    return run ? [...notices, ...this.#runNotices(run)] : notices;
  }

  #runNotices(run) {
    const notices = [];
    if (run.state === "finished") notices.push({ kind: "good", title: "Run finished", text: "This is its last state." });
    if (run.state === "failed") notices.push({ kind: "critical", title: "Run failed", text: "An exception ended it. This is its last state." });
    if (run.state === "vanished") notices.push({ kind: "critical", title: "Run vanished", text: "Its process is gone without a word: killed, perhaps for lack of memory. This is its last state." });
    if (run.state === "interrupted") notices.push({ kind: "warning", title: "Run interrupted", text: "It was stopped before its end. This is its last state." });
    const troubles = ongoing(this.picture.events.all, run.events_active);
    for (const { key, loss } of run.optimizers) {
      if (troubles.some(({ kind, optimizer }) => kind === "nonfinite" && optimizer === key)) continue;
      if (typeof loss === "number" && !Number.isFinite(loss)) {
        notices.push({ kind: "critical", title: `Loss ${isEnded(run) ? "was" : "is"} ${number(loss)}`, text: run.optimizers.length > 1 ? `The last step of ${key} had no finite loss.` : "The last step had no finite loss." });
      }
    }
    for (const event of troubles) {
      const since = event.message.includes("since step") ? "" : ` (since step ${integer(event.start_step)})`;
      const also = event.also.length ? `; with it: ${event.also.map(words).join(", ")}` : "";
      notices.push({ kind: event.severity, title: `${words(event.kind)}${isEnded(run) ? " at the end" : ""}`, text: `${event.message}${since}${also}`, action: ["Show", () => this.#show(event)] });
    }
    return notices;
  }

  #renderNotices(notices) {
    const key = JSON.stringify(notices);
    if (key === this.noticeKey) return;
    const isSame = byId("notices").childElementCount === notices.length;
    this.noticeKey = key;
    if (isSame && notices.every(({ kind, action }, order) => byId("notices").children[order].dataset.kind === kind && !action)) {
      notices.forEach(({ title, text }, order) => { // a ticking age changes text only
        setText(byId("notices").children[order].querySelector("strong"), title);
        setText(byId("notices").children[order].querySelector("span"), text);
      });
      return;
    }
    byId("notices").replaceChildren(...notices.map(({ kind, title, text, action }) => h("div", { class: "notice", "data-kind": kind },
      icon({ good: "finished" }[kind] ?? kind), h("strong", {}, title.charAt(0).toUpperCase() + title.slice(1)), h("span", {}, text),
      action ? h("button", { type: "button", class: "quiet", onclick: action[1] }, action[0]) : null)));
  }
}

new Page().start();
