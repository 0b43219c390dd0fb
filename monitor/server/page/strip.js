// The state of the run at a glance: header, progress and the tiles below it.

import { announce, byId, h, icon, setAttribute, setText } from "./dom.js";
import * as format from "./format.js";

const ENDED = new Set(["finished", "failed", "interrupted", "vanished"]);
const STATE_TEXT = {
  starting: "Starting", running: "Running", paused: "Paused", finished: "Finished", failed: "Failed", interrupted: "Interrupted",
  vanished: "Vanished",
};
const GLYPH = { starting: "…", running: "▶", paused: "⏸", finished: "✓", failed: "✗", interrupted: "■", vanished: "?" };

export const isEnded = (run) => ENDED.has(run?.state);

const TILES = [
  ["loss", "Loss"], ["best", "Best loss"], ["learning-rate", "Learning rate"], ["gradient-norm", "Gradient norm"],
  ["clipped", "Steps clipped"], ["speed", "Speed"], ["last-step", "Last step"], ["overhead", "Monitor overhead"],
];

/** Say of whose shares of the batch the loss is the mean. */
const shareOf = (info, summed) => {
  if (summed <= 1) return `on rank ${info.rank} of ${info.world_size}`;
  return summed === info.world_size ? `mean of ${summed} ranks` : `mean of ${summed} of ${info.world_size} ranks`;
};

class Tile {
  constructor(id, label) {
    this.value = h("data", { value: "" }, format.UNKNOWN);
    this.sign = icon("critical");
    this.unit = h("small");
    this.line = h("dd", { class: "value" }, this.sign, this.value, this.unit);
    this.sub = h("dd", { class: "sub" });
    this.element = h("div", { class: "tile", id: `tile-${id}` }, h("dt", {}, label), this.line, this.sub);
  }

  /** Show `text` for the raw `value`; `alarm` is critical, warning or null. */
  show(value, text, sub = "", alarm = null, unit = "") {
    setText(this.unit, unit);
    setText(this.value, text);
    setAttribute(this.value, "value", value ?? "");
    setText(this.sub, sub);
    setAttribute(this.element, "data-alarm", alarm);
    this.sign.toggleAttribute("hidden", !alarm);
  }
}

const notFinite = (value) => typeof value === "number" && !Number.isFinite(value);

/** The least and largest of the groups' values, as one text. */
function span(values, write) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  return low === high ? write(low) : `${write(low)} – ${write(high)}`;
}

export class Strip {
  constructor() {
    this.tiles = Object.fromEntries(TILES.map(([id, label]) => [id, new Tile(id, label)]));
    byId("tiles").replaceChildren(...Object.values(this.tiles).map((tile) => tile.element));
    this.shownState = null;
  }

  /** Show a snapshot of the run and of the chosen optimizer in it. */
  update(run, optimizer) {
    setText(byId("run-name"), run.run.name || run.run.run_id);
    setText(byId("run-id"), run.run.run_id);
    this.#progress(run, optimizer);
    this.#loss(run, optimizer);
    this.#rates(optimizer);
    this.#speed(run);
    const step = optimizer ? `${format.integer(optimizer.global_step)} · loss ${format.number(optimizer.loss)} · ` : "";
    document.title = `${GLYPH[run.state] ?? ""} ${step}${run.run.name || run.run.run_id}`;
  }

  /** Show the state, or since when nobody answers. */
  showState(run, silentSeconds) {
    const isStale = silentSeconds !== null && !isEnded(run);
    const name = isStale ? "stale" : run?.state ?? "starting";
    const text = isStale ? "No answer" : run ? STATE_TEXT[run.state] ?? run.state : "Connecting";
    const key = `${name} ${text}`;
    if (key === this.shownState) return;
    const badge = byId("state");
    setAttribute(badge, "data-state", name);
    badge.replaceChildren(icon(name), text);
    if (this.shownState !== null && run) announce(isStale ? "The run does not answer" : `Run ${text.toLowerCase()}`);
    this.shownState = key;
  }

  #progress(run, optimizer) {
    const step = optimizer?.global_step ?? 0;
    const target = optimizer === run.optimizers[0] ? run.target_steps : null; // the target counts the steps of the first
    byId("progress").hidden = !optimizer;
    byId("progress-bar").hidden = !target;
    const parts = [`Step ${format.integer(step)}${target ? ` of ${format.integer(target)}` : ""}`];
    if (target) {
      const share = Math.min(1, step / target);
      setAttribute(byId("progress-bar"), "value", share);
      parts.push(`${(share * 100).toFixed(share < 0.1 ? 1 : 0)} %`);
    }
    const elapsed = run.elapsed_seconds;
    if (isEnded(run)) parts.push(`took ${format.duration(elapsed)}`, `ended ${format.clock(run.end_time)}`);
    else {
      if (target && run.eta_seconds !== null) parts.push(`${format.duration(run.eta_seconds)} left`);
      parts.push(`running for ${format.duration(elapsed)}`);
    }
    setText(byId("progress-text"), parts.join(" · "));
  }

  #loss(run, optimizer) {
    const info = run.run;
    const { loss = null, loss_ema: smooth = null, loss_best: best = null, loss_best_step: bestStep = null, nonfinite = {} } = optimizer ?? {};
    const bad = (nonfinite.loss ?? 0) + (nonfinite.gradient ?? 0);
    const history = bad ? `${format.integer(bad)} non-finite so far` : "";
    const unknown = loss === null && optimizer?.steps ? "not known for the last step" : "";
    const share = info.world_size > 1 ? shareOf(info, run.summed_ranks) : "";
    const words = [unknown, share, `smoothed ${format.number(smooth)}`, history].filter(Boolean).join(", ");
    this.tiles.loss.show(loss, format.number(loss), words, notFinite(loss) ? "critical" : null);
    this.tiles.best.show(best, format.number(best), bestStep === null ? "" : `smoothed, at step ${format.integer(bestStep)}`);
  }

  #rates(optimizer) {
    const groups = optimizer?.groups ?? [];
    const applied = groups.map((group) => group.applied).filter((value) => value !== null);
    const factors = groups.map((group) => group.factor);
    const count = groups.length === 1 ? "1 param group" : `${groups.length} param groups`;
    const isReduced = factors.some((factor) => factor !== 1);
    const highest = applied.length ? Math.max(...applied) : null;
    const isUnknown = groups.length > 0 && !applied.length;
    const which = new Set(applied).size > 1 ? `highest of ${groups.length} groups` : count;
    this.tiles["learning-rate"].show(highest, format.rate(highest),
      isUnknown ? "not in the param groups: the optimizer derives it itself" : groups.length ? `${which}, ${isReduced ? `${span(factors, format.factor)} of the schedule` : "as scheduled"}` : "");

    const { gradient_norm: norm = null, gradient_norm_step: at = null, gradient_norm_reason: reason = null, global_step: step = null, gradient_norm_window_max: most = null, clip_threshold: threshold = null, clip_share: share = null } = optimizer ?? {};
    const when = at === null || at === step ? "" : `at step ${format.integer(at)}`;
    this.tiles["gradient-norm"].show(norm, format.number(norm), [reason, when, most === null ? "" : `at most ${format.number(most)} of late`].filter(Boolean).join(", "), notFinite(norm) ? "critical" : null);
    this.tiles.clipped.show(share, format.percent(share), threshold === null ? "no clipping seen" : `to a norm of ${format.rate(threshold)}`);
  }

  #speed(run) {
    const speed = run.steps_per_second;
    const extra = [["tokens", run.tokens_per_second], ["samples", run.samples_per_second]].find(([, value]) => value !== null && value !== undefined);
    this.tiles.speed.show(speed, format.number(speed, 3),
      extra ? `${format.integer(extra[1])} ${extra[0]}/s` : speed ? `${format.duration(1 / speed)} a step` : "", null, speed === null ? "" : "steps/s");
    const errors = Object.values(run.errors).reduce((sum, count) => sum + count, 0);
    const troubles = [errors ? `${errors} errors of ours` : "", run.dropped_steps ? `${format.integer(run.dropped_steps)} steps not recorded` : ""].filter(Boolean);
    this.tiles.overhead.show(run.overhead_ratio, format.percent(run.overhead_ratio), troubles.join(", ") || "of the step time", troubles.length ? "warning" : null);
  }

  /** Let the age of the last step tick; called between answers too. */
  tick(run, now) {
    const last = run?.last_step_time;
    if (last === null || last === undefined) return this.tiles["last-step"].show(null, format.UNKNOWN, "no step yet");
    const age = Math.max(0, now - last);
    const usual = run.steps_per_second ? 1 / run.steps_per_second : 1;
    const isQuiet = run.state === "running" && age > Math.max(30, 20 * usual);
    const alarm = run.state === "running" && age > run.stall_timeout ? "critical" : isQuiet ? "warning" : null;
    return this.tiles["last-step"].show(last, isEnded(run) ? format.clock(last) : format.age(age),
      isEnded(run) ? "when it was made" : `at ${format.clock(last)}`, alarm);
  }
}
