// The control card: choose, see what would change, confirm, see what became of it.

import { get, idempotencyKey, send } from "./api.js";
import { ACTIONS, describeOutcome, listGroups, merge, preview } from "./changes.js";
import { announce, byId, h, icon, setAttribute, setText } from "./dom.js";
import * as format from "./format.js";
import { csrfToken } from "./session.js";
import { isEnded } from "./strip.js";

const MAX_OUTCOMES = 4;
const OUTCOME_POLL_MS = 400;
const OUTCOME_ICON = { pending: "starting", applied: "finished", rejected: "failed", expired: "failed" };

export class ControlCard {
  constructor(element) {
    Object.assign(this, { run: null, action: "reduce", chosen: new Set(), known: "", undoable: null, isBusy: false });
    this.element = element;
    this.#build();
  }

  #build() {
    const actions = Object.entries(ACTIONS).map(([value, { label }]) => h("label", {},
      h("input", { type: "radio", name: "action", value, checked: value === "reduce", onchange: () => this.#choose(value) }), h("span", {}, label)));
    this.factor = h("input", { type: "number", id: "factor", min: "0", step: "any", value: "0.5", required: true, inputmode: "decimal", "aria-describedby": "factor-hint" });
    this.factorHint = h("span", { id: "factor-hint" });
    this.overSteps = h("input", { type: "number", id: "over-steps", min: "0", step: "1", value: "0", inputmode: "numeric" });
    this.reason = h("input", { type: "text", id: "reason", maxlength: "500", placeholder: "kept in the audit trail", autocomplete: "off" });
    this.groupBox = h("div", { class: "groups" });
    this.error = h("p", { class: "error", role: "alert", id: "control-error" });
    this.note = h("p", { class: "note", id: "control-note" });
    this.submit = h("button", { type: "submit", class: "primary" }, "Review the change…");
    this.factorField = h("label", { class: "field" }, h("span", {}, "Factor"), this.factor);
    this.overField = h("label", { class: "field" }, h("span", {}, "Reach it over (steps)"), this.overSteps);
    this.groupField = h("fieldset", {}, h("legend", {}, "Param groups"), this.groupBox);
    this.fields = h("fieldset", { class: "form" },
      h("legend", { class: "visually-hidden" }, "Change the learning rate"),
      h("fieldset", { class: "segmented" }, h("legend", { class: "visually-hidden" }, "What to do"), actions),
      h("div", { class: "pair" }, this.factorField, this.overField), this.factorHint, this.groupField,
      h("label", { class: "field" }, h("span", {}, "Reason (optional)"), this.reason), this.error, this.submit);
    this.form = h("form", { novalidate: true, onsubmit: (event) => this.#review(event) }, this.fields);
    this.outcomes = h("div", { class: "outcomes" });
    this.factorHint.className = "note";
    this.element.replaceChildren(h("h2", { id: "control-title" }, "Learning rate control"), this.note, this.form, this.outcomes);
    this.#choose("reduce");
  }

  /** Show the groups of a snapshot, and whether this page may change them. */
  update(run) {
    this.run = run;
    const why = this.#obstacle(run);
    setText(this.note, why);
    this.note.hidden = !why;
    this.form.hidden = !run.page?.can_control;
    this.fields.disabled = Boolean(why);
    this.#showGroups(listGroups(run));
  }

  /** Say that the run does not answer: nothing can be sent. */
  setSilent(isSilent) {
    this.submit.disabled = isSilent;
  }

  /** Remember the audit entry of the change that an undo would take back. */
  setUndoable(entry) {
    this.undoable = entry;
  }

  #obstacle(run) {
    if (!run.page?.can_control) return "This page was opened with a read-only token: it shows everything and changes nothing. Open it with the control token to lower the learning rate.";
    if (isEnded(run)) return "The run has ended: there is nothing left to change.";
    return run.optimizers.some((optimizer) => optimizer.groups.length) ? "" : "Waiting for the first optimizer step.";
  }

  #choose(action) {
    this.action = action;
    const { hasFactor, hasGroups } = ACTIONS[action];
    this.factorField.hidden = !hasFactor;
    this.overField.hidden = !hasGroups;
    this.groupField.hidden = !hasGroups;
    setText(this.factorHint, {
      reduce: "Multiplies the factor in force: 0.5 halves the learning rate, twice quarters it.",
      set: "The schedule times this factor, whatever is in force now. 1 is the schedule itself.",
      restore: "Goes back to the schedule: every chosen factor becomes 1.",
      undo: "Takes the last change back, on the groups that it changed.",
    }[action]);
    setText(this.error, "");
  }

  #showGroups(groups) {
    const known = groups.map(({ key, label }) => `${key} ${label}`).join("|");
    if (known !== this.known) this.#buildGroups(groups, known);
    for (const group of groups) {
      const row = this.rows.get(group.key);
      setText(row.lr, format.rate(group.applied));
      setText(row.factor, format.factor(group.factor));
      setAttribute(row.factor, "data-active", group.factor === 1 ? null : "");
    }
  }

  #buildGroups(groups, known) {
    this.known = known;
    this.chosen = new Set(groups.map(({ key }) => key));
    this.rows = new Map(groups.map((group) => {
      const box = h("input", { type: "checkbox", checked: true, onchange: () => this.#toggle(group.key, box.checked) });
      return [group.key, { box, lr: h("span", { class: "lr" }), factor: h("span", { class: "factor" }), label: group.label }];
    }));
    this.allBox = h("input", { type: "checkbox", checked: true, onchange: () => this.#toggleAll(this.allBox.checked) });
    const all = h("label", {}, this.allBox, h("span", { class: "name" }, `All ${groups.length} groups`));
    this.groupBox.replaceChildren(...(groups.length > 1 ? [all] : []), ...[...this.rows.values()].map(({ box, label, lr, factor }) =>
      h("label", {}, box, h("span", { class: "name" }, label), lr, factor)));
  }

  #toggle(key, isOn) {
    if (isOn) this.chosen.add(key);
    else this.chosen.delete(key);
    this.allBox.checked = this.chosen.size === this.rows.size;
    this.allBox.indeterminate = this.chosen.size > 0 && !this.allBox.checked;
  }

  #toggleAll(isOn) {
    for (const [key, { box }] of this.rows) {
      box.checked = isOn;
      this.#toggle(key, isOn);
    }
  }

  /** Read the form; returns the command and its rows, or says what is wrong with it. */
  #read() {
    const { hasFactor, hasGroups, method, path } = ACTIONS[this.action];
    const groups = listGroups(this.run);
    const body = this.reason.value.trim() ? { reason: this.reason.value.trim() } : {};
    if (hasFactor) {
      body.factor = this.factor.valueAsNumber;
      if (!(body.factor > 0)) return this.#refuse(this.factor, `The factor must be a number above 0, such as 0.5.`);
    }
    if (hasGroups) {
      if (!this.chosen.size) return this.#refuse(this.allBox ?? this.factor, "Choose at least one param group.");
      if (this.chosen.size < groups.length) body.groups = groups.filter(({ key }) => this.chosen.has(key)).map(({ target }) => target);
      const steps = this.overSteps.value.trim() === "" ? 0 : this.overSteps.valueAsNumber;
      if (!Number.isInteger(steps) || steps < 0) return this.#refuse(this.overSteps, "The number of steps must be a whole number, 0 or more.");
      if (steps) body.over_steps = steps;
    }
    return { command: { method, path, body }, rows: preview(this.action, groups, this.chosen, body.factor, this.undoable) };
  }

  #refuse(input, message) {
    setText(this.error, message);
    input.setAttribute("aria-invalid", "true");
    input.focus();
    return null;
  }

  #review(event) {
    event.preventDefault();
    if (this.isBusy || !this.run) return;
    for (const input of [this.factor, this.overSteps]) input.removeAttribute("aria-invalid");
    setText(this.error, "");
    const plan = this.#read();
    if (plan) this.#confirm(plan);
  }

  #confirm({ command, rows }) {
    const dialog = byId("confirm");
    const { title } = ACTIONS[this.action];
    const step = Math.max(...this.run.optimizers.map((optimizer) => optimizer.global_step));
    const error = h("p", { class: "error", role: "alert" });
    const cancel = h("button", { type: "button", autofocus: true, onclick: () => dialog.close() }, "Cancel");
    const confirm = h("button", { type: "button", class: "primary" }, this.action === "undo" ? "Undo it" : `${ACTIONS[this.action].label} it`);
    const key = idempotencyKey(); // one key for one reviewed change: pressing again after a lost answer cannot do it twice
    confirm.addEventListener("click", () => this.#send(command, key, { dialog, confirm, error }));
    const when = command.body.over_steps ? `Reached geometrically over ${format.integer(command.body.over_steps)} steps.` : "In force from the next optimizer step.";
    const unknown = this.action === "undo" && !this.undoable ? " What it was before the last change is known to the run, not to this page." : "";
    dialog.replaceChildren(h("h2", { id: "confirm-title" }, `${title}?`),
      h("p", { class: "note" }, `Learning rates as of step ${format.integer(step)}. ${when}${unknown}`),
      h("div", { class: "scroll", tabindex: rows.length > 8 ? "0" : null, role: "group", "aria-label": "Changes" }, changeTable(rows)),
      command.body.reason ? h("p", { class: "note" }, `Reason: ${command.body.reason}`) : null, error,
      h("div", { class: "actions" }, cancel, confirm));
    dialog.showModal();
  }

  async #send(command, key, { dialog, confirm, error }) {
    if (this.isBusy) return;
    this.isBusy = true;
    confirm.disabled = true;
    setText(error, "");
    try {
      const record = await send(command, csrfToken(), key);
      dialog.close();
      this.reason.value = "";
      this.#follow(record);
    } catch (failure) {
      if (failure.status === 0) setText(error, `${failure.message} The command may have arrived; trying again will not apply it twice.`);
      else {
        dialog.close();
        this.#showOutcome(h("p", { class: "outcome" }), { status: "rejected", action: this.action, message: failure.message });
      }
    } finally {
      this.isBusy = false;
      confirm.disabled = false;
    }
  }

  async #follow(record) {
    const line = h("p", { class: "outcome" });
    this.#showOutcome(line, record);
    for (let latest = record; latest.status === "pending" && line.isConnected;) {
      await new Promise((resolve) => setTimeout(resolve, OUTCOME_POLL_MS));
      try {
        latest = await get(`/commands/${encodeURIComponent(record.id)}`);
      } catch (failure) {
        if (failure.status) latest = { ...record, status: "expired", message: failure.message };
        else await new Promise((resolve) => setTimeout(resolve, 4 * OUTCOME_POLL_MS));
      }
      if (latest.status !== "pending") this.#showOutcome(line, latest);
    }
  }

  #showOutcome(line, record) {
    const text = describeOutcome(record, this.run.optimizers.length > 1);
    setAttribute(line, "data-status", record.status);
    line.replaceChildren(icon(OUTCOME_ICON[record.status] ?? "info"), h("span", {}, unbroken(text)));
    if (!line.isConnected) this.outcomes.prepend(line);
    while (this.outcomes.childElementCount > MAX_OUTCOMES) this.outcomes.lastElementChild.remove();
    announce(text);
  }
}

/** Keep a number like 2.4e-4 on one line: its hyphen is no place to break. */
function unbroken(text) {
  return text.split(/(\S*e-\d+\S*)/).map((part) => (part.includes("e-") ? h("span", { class: "unbroken" }, part) : part));
}

function changeTable(rows) {
  const unsure = "as before";
  return h("table", {},
    h("thead", {}, h("tr", {}, ["Param group", "LR now", "LR after"].map((title) => h("th", { scope: "col" }, title)))),
    h("tbody", {}, merge(rows).map((row) => h("tr", {}, h("th", { scope: "row", class: "text" }, row.label),
      h("td", {}, format.rate(row.before), " ", h("small", {}, format.factor(row.factorBefore))),
      h("td", { class: "after" }, row.after === null ? unsure : [format.rate(row.after), " ", h("small", {}, format.factor(row.factorAfter))])))));
}
