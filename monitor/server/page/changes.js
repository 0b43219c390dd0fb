// What a command would do to each learning rate: reckoned here to be shown before it is sent; the run has the last word.

import * as format from "./format.js";

export const ACTIONS = {
  reduce: { label: "Reduce", title: "Reduce the learning rate", hasFactor: true, hasGroups: true, method: "POST", path: "/lr/reduce" },
  set: { label: "Set", title: "Set the factor of the learning rate", hasFactor: true, hasGroups: true, method: "PUT", path: "/lr" },
  restore: { label: "Restore", title: "Restore the scheduled learning rate", hasFactor: false, hasGroups: true, method: "POST", path: "/lr/restore" },
  undo: { label: "Undo", title: "Undo the last change", hasFactor: false, hasGroups: false, method: "POST", path: "/lr/undo" },
};

/** List every param group of the run with the text that names it and the value by which the API knows it. */
export function listGroups(run) {
  const isSeveral = run.optimizers.length > 1;
  return run.optimizers.flatMap((optimizer) => optimizer.groups.map((group) => ({
    ...group,
    optimizer: optimizer.key,
    key: `${optimizer.key} ${group.index}`,
    target: isSeveral ? `${optimizer.key}/${group.index}` : group.index,
    label: labelOf(optimizer.key, group.index, group.name, isSeveral),
  })));
}

function labelOf(optimizer, index, name, isSeveral) {
  return `${isSeveral ? `${optimizer}: ` : ""}${name ? `${index} ${name}` : `group ${index}`}`;
}

/** Find the audit entry of the change that an undo would take back; null where this page cannot know it. */
export function undoable(events) {
  const applied = [];
  for (const { kind, details = {} } of [...events].sort((a, b) => a.id - b.id)) {
    if (details.state === "resumed") applied.length = 0; // what an earlier session changed came with its checkpoint
    if (kind !== "control" || details.status !== "applied") continue;
    if (details.action === "undo") applied.pop();
    else if (["reduce", "set", "restore"].includes(details.action)) applied.push(details);
  }
  return applied.at(-1) ?? null;
}

/** Reckon old and new of each group. `last` is the audit entry of the change that an undo would take back, if known. */
export function preview(action, groups, chosen, value, last) {
  return groups.map((group) => ({ group, after: factorAfter(action, group, value, last) }))
    .filter(({ group, after }) => (action === "undo" ? after !== undefined : chosen.has(group.key)))
    .map(({ group, after }) => ({
      label: group.label, factorBefore: group.factor, factorAfter: after, before: group.applied,
      after: after === null || group.scheduled === null ? null : group.scheduled * after,
    }));
}

function factorAfter(action, group, value, last) {
  if (action === "reduce") return group.factor * value;
  if (action === "set") return value;
  if (action === "restore") return 1;
  if (!last) return null;
  return last.before.find(([optimizer, index]) => optimizer === group.optimizer && index === group.index)?.[2];
}

/** Put rows that say the same into one: 64 groups on one schedule are one line to read. */
export function merge(rows) {
  const merged = new Map();
  for (const row of rows) {
    const key = [row.before, row.after, row.factorBefore, row.factorAfter].join(" ");
    if (merged.has(key)) merged.get(key).labels.push(row.label);
    else merged.set(key, { ...row, labels: [row.label] });
  }
  return [...merged.values()].map((row) => ({
    ...row, label: row.labels.length > 3 ? `${row.labels[0]} … ${row.labels.at(-1)} (${row.labels.length} groups)` : row.labels.join(", "),
  }));
}

/** Say in one line what became of a command; of which optimizer, where the run has several. */
export function describeOutcome(record, isSeveral) {
  const { status, action, changes = [] } = record;
  if (status === "pending") return `${format.words(action)}: waiting for the next optimizer step`;
  if (status !== "applied") return `${format.words(action)} ${status}: ${record.message || "no reason given"}`;
  const rows = merge(changes.map((change) => ({
    label: labelOf(change.optimizer, change.param_group, change.name, isSeveral),
    before: change.lr_before, after: change.lr_after, factorBefore: change.factor_before, factorAfter: change.factor_after,
  })));
  const texts = rows.slice(0, 4).map((row) => `${row.label} ${format.rate(row.before)} → ${format.rate(row.after)}`);
  return `${format.words(action)} applied at step ${format.integer(record.step)}${texts.length ? `: ${texts.join("; ")}` : ""}${record.over_steps ? `, over ${format.integer(record.over_steps)} steps` : ""}`;
}
