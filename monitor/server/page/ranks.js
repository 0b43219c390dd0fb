// How far each rank is, where several train together and this is rank 0's run.

import { h, icon } from "./dom.js";
import * as format from "./format.js";
import { isEnded } from "./strip.js";

const COLUMNS = ["Rank", "State", "Step", "Step time", "Own time", "Loss", "Last seen", "Host"];
const SIGNS = { lost: "critical", behind: "warning" };

/** The card of the ranks; hidden while there are none. Rows are replaced, the card is not: it keeps its scroll position. */
export class RanksCard {
  constructor(element) {
    this.element = element;
    this.title = h("h2", { id: "ranks-title" });
    this.body = h("tbody");
    const head = h("thead", {}, h("tr", {}, COLUMNS.map((name) => h("th", { scope: "col" }, name))));
    element.replaceChildren(this.title, h("div", { class: "scroll", tabindex: 0, role: "region", "aria-labelledby": "ranks-title" }, h("table", {}, head, this.body)));
  }

  update(run) {
    const { ranks } = run;
    this.element.hidden = !ranks.length;
    if (!ranks.length) return;
    this.title.textContent = `${ranks.length} ranks${isEnded(run) ? " when the run ended" : ""}`;
    this.body.replaceChildren(...ranks.map((one) => rowOf(one, isEnded(run))));
  }
}

function rowOf(one, isOver) {
  const seen = one.last_seen_seconds;
  const age = isOver && Number.isFinite(seen) ? `${format.duration(seen)} before` : format.age(seen);
  const figures = [format.integer(one.step), format.duration(one.step_time), format.duration(one.own_time ?? null), format.number(one.loss), age];
  return h("tr", { "data-state": one.state },
    h("th", { scope: "row" }, String(one.rank)),
    h("td", { class: "state" }, SIGNS[one.state] ? icon(SIGNS[one.state]) : null, format.words(one.state)),
    figures.map((text) => h("td", {}, text)),
    h("td", {}, one.host || format.UNKNOWN));
}
