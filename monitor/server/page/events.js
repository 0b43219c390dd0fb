// What happened: the list beside the charts, and the notices on top for what is still active.

import { announce, h, icon, setText } from "./dom.js";
import { clock, integer, words } from "./format.js";

/** The newest events that are kept, unless somebody asks for earlier ones, and that one answer has. */
export const MAX_EVENTS = 400;
const MAX_LISTED = 120;
const MAX_NOTICES = 4;
/** Kinds that come of one another, the one that says most first. */
const ONE_TROUBLE = ["nonfinite", "divergence", "spike", "gradient_explosion"];
const SEVERITY = { critical: "critical", warning: "warning", info: "information" };
const FILTERS = {
  all: () => true,
  trouble: (event) => event.severity !== "info" && event.kind !== "control",
  control: (event) => event.kind === "control" || event.kind === "state",
};

/** Events by id: one that ends arrives again under its id. The oldest leave first; `earlier` is where these begin. */
export class EventStore {
  constructor() {
    Object.assign(this, { byId: new Map(), next: 0, earlier: null, limit: MAX_EVENTS });
  }

  /** Take what /events answered; returns the events that were not known before. */
  add({ events, next, earlier }) {
    const fresh = new Set(events.map((event) => event.id).filter((id) => !this.byId.has(id)));
    if (earlier !== null) { // more has happened than one answer has: what is known lies before a gap
      this.byId.clear();
      this.earlier = earlier;
    }
    for (const event of events) this.byId.set(event.id, event);
    for (const [id, { seq }] of this.byId) {
      if (this.byId.size <= this.limit) break;
      this.byId.delete(id);
      this.earlier = Math.max(this.earlier, seq + 1);
    }
    this.next = Math.max(this.next, next);
    return this.all.filter((event) => fresh.has(event.id));
  }

  /** Take a page of the past, and keep it: what is known of its events is newer. */
  addEarlier({ events, earlier }) {
    this.byId = new Map([...events.map((event) => [event.id, event]), ...this.byId]);
    this.earlier = earlier;
    this.limit += events.length;
  }

  get all() {
    return [...this.byId.values()];
  }
}

const isOngoing = (event) => event.end_step === null && event.severity !== "info" && event.kind !== "control";

/**
 * Detector events that have begun and not ended, the gravest and newest first; `active` says which kinds still hold.
 * Those that come of one another are one, with the kinds of the others in `also`.
 */
export function ongoing(events, active) {
  const latest = new Map();
  for (const event of events) {
    if (isOngoing(event) && active[event.kind]) latest.set(`${event.kind} ${event.optimizer} ${event.details?.name}`, event);
  }
  const rank = (event) => (event.severity === "critical" ? 0 : 1);
  return fold([...latest.values()]).sort((a, b) => rank(a) - rank(b) || b.step - a.step).slice(0, MAX_NOTICES);
}

/** Put the events of one optimizer that are one trouble under the one that says most. */
function fold(events) {
  const folded = events.filter((event) => !ONE_TROUBLE.includes(event.kind)).map((event) => ({ ...event, also: [] }));
  const troubles = events.filter((event) => ONE_TROUBLE.includes(event.kind));
  for (const optimizer of new Set(troubles.map((event) => event.optimizer))) {
    const [first, ...others] = troubles.filter((event) => event.optimizer === optimizer)
      .sort((a, b) => ONE_TROUBLE.indexOf(a.kind) - ONE_TROUBLE.indexOf(b.kind));
    folded.push({ ...first, also: others.map((event) => event.kind) });
  }
  return folded;
}

export class EventList {
  /**
   * @param onShow called with an event whose place on the charts somebody wants to see
   * @param onEarlier called for events before those that are known; updates the list and returns a promise
   */
  constructor(element, onShow, onEarlier) {
    Object.assign(this, { onShow, onEarlier, filter: "all", events: [], limit: MAX_LISTED, hasEarlier: false, unfolded: new Set() });
    this.list = h("ol", { tabindex: "0", "aria-label": "Events, newest first" });
    this.empty = h("p", { class: "note" });
    this.more = h("button", { type: "button", class: "quiet", onclick: () => this.#showEarlier() }, "Show earlier events");
    const choices = Object.entries({ all: "All", trouble: "Trouble", control: "Control" }).map(([value, label]) =>
      h("label", {}, h("input", { type: "radio", name: "event-filter", value, checked: value === "all", onchange: () => this.#choose(value) }), h("span", {}, label)));
    element.replaceChildren(
      h("div", { class: "card-head" }, h("h2", { id: "events-title" }, "Events"),
        h("fieldset", { class: "segmented" }, h("legend", { class: "visually-hidden" }, "Events shown"), choices)),
      this.empty, this.list, this.more);
    this.#render();
  }

  async #showEarlier() {
    this.limit += MAX_LISTED;
    this.more.disabled = true;
    let problem = "";
    try {
      if (this.hasEarlier && this.#chosen().length < this.limit) await this.onEarlier();
    } catch (failure) {
      problem = failure.message;
    }
    this.more.disabled = false;
    this.#render();
    if (problem) setText(this.empty, `Earlier events could not be loaded: ${problem}`);
  }

  #chosen() {
    return this.events.filter(FILTERS[this.filter]);
  }

  #choose(filter) {
    this.filter = filter;
    this.#render();
  }

  /** Show what is in the store, with the optimizer where there are several; read out the `fresh` events that matter. */
  update(store, fresh, isSeveral) {
    Object.assign(this, { isSeveral, events: store.all, hasEarlier: store.earlier !== null });
    this.#render();
    for (const event of fresh) {
      if (event.severity !== "info" || event.kind === "control") announce(`${words(event.kind)}: ${event.message}`);
    }
  }

  #render() {
    const chosen = this.#chosen();
    const listed = chosen.sort((a, b) => b.id - a.id).slice(0, this.limit);
    const isAll = listed.length === chosen.length && !this.hasEarlier;
    this.list.hidden = !listed.length;
    this.more.hidden = isAll;
    this.empty.hidden = Boolean(listed.length) && isAll;
    setText(this.empty, listed.length ? `The latest ${listed.length} of ${chosen.length}${this.hasEarlier ? " or more" : ""}.` : this.events.length ? "None of this sort." : "Nothing has happened so far.");
    this.list.replaceChildren(...listed.map((event) => this.#item(event)));
  }

  #item(event) {
    const isOwn = event.kind === "control" || event.kind === "state";
    const onset = !isOwn && event.start_step < event.step ? `began at step ${integer(event.start_step)}` : "";
    const ended = isOwn || event.end_step === null ? "" : `ended at step ${integer(event.end_step)}`;
    return h("li", { class: "event", "data-severity": event.severity, "data-kind": event.kind },
      icon(isOwn ? "control" : event.severity),
      h("div", { class: "what" },
        h("strong", {}, words(event.kind)),
        isOwn ? null : h("span", { class: "tag", "data-severity": event.severity }, SEVERITY[event.severity] ?? event.severity),
        event.optimizer && this.isSeveral ? h("span", { class: "tag" }, event.optimizer) : null,
        h("button", { type: "button", class: "link", "aria-label": `Show step ${integer(event.step)} on the charts`, onclick: () => this.onShow(event) }, `step ${integer(event.step)}`),
        h("time", { datetime: new Date((event.time || 0) * 1000).toISOString() }, clock(event.time))),
      h("p", { class: "message" }, [event.message, onset, ended].filter(Boolean).join(" · ")),
      (event.details?.stacks ?? []).map((one) => this.#stack(`${event.id} ${one.of}`, one)),
      /^https?:/.test(event.details?.debug_page ?? "") ? h("a", { class: "stack", href: event.details.debug_page, rel: "noreferrer" }, "torch's debug page") : null);
  }

  /** Where ranks stand in a stall, folded; what somebody has unfolded stays so when the list is made anew. */
  #stack(key, { of, stack }) {
    const note = ({ target }) => (target.open ? this.unfolded.add(key) : this.unfolded.delete(key));
    return h("details", { class: "stack", open: this.unfolded.has(key), ontoggle: note }, h("summary", {}, `Stack of ${of}`), h("pre", {}, stack));
  }
}
