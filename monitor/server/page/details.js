// What one looks up now and then: the machine, logged values, counters, where it runs.

import { h } from "./dom.js";
import * as format from "./format.js";

function facts(rows) {
  const known = rows.filter(([, text]) => text && text !== format.UNKNOWN);
  return known.length ? h("dl", { class: "facts" }, known.map(([label, text]) => [h("dt", {}, label), h("dd", {}, text)])) : null;
}

const share = (used, total) => (used === null ? null : total ? `${format.bytes(used)} of ${format.bytes(total)}` : format.bytes(used));

function gpuFacts(gpu) {
  const throttled = Object.entries(gpu.throttle_reasons ?? {}).filter(([, isOn]) => isOn).map(([reason]) => format.words(reason));
  const errors = Object.entries(gpu.ecc_errors ?? {}).filter(([, count]) => count > 0).map(([kind, count]) => `${format.integer(count)} ${kind}`);
  return facts([
    ["Busy", format.percent(gpu.utilization_ratio)],
    ["Memory", share(gpu.memory_used_bytes, gpu.memory_total_bytes)],
    ["PyTorch", gpu.cuda_allocated_bytes === null ? null : `${format.bytes(gpu.cuda_allocated_bytes)} allocated, ${format.bytes(gpu.cuda_reserved_bytes)} reserved`],
    ["Power", gpu.power_watts === null ? null : `${Math.round(gpu.power_watts)} W${gpu.power_limit_watts ? ` of ${Math.round(gpu.power_limit_watts)} W` : ""}`],
    ["Temperature", gpu.temperature_celsius === null ? null : `${Math.round(gpu.temperature_celsius)} °C`],
    ["Held back by", throttled.join(", ")],
    ["ECC errors", errors.join(", ")],
  ]);
}

function counters(run, optimizer) {
  const counted = (mapping = {}) => Object.entries(mapping).filter(([, count]) => count).map(([name, count]) => `${format.integer(count)} ${format.words(name)}`).join(", ");
  return facts([
    ["Steps made", format.integer(optimizer?.steps)],
    ["Samples", format.integer(run.samples_total)],
    ["Tokens", format.integer(run.tokens_total)],
    ["Not finite", counted(optimizer?.nonfinite)],
    ["AMP scale", optimizer?.amp_scale ? format.number(optimizer.amp_scale) : null],
    ["Skipped", counted(optimizer?.skipped_steps)],
    ["Monitor errors", counted(run.errors)],
    ["Readings", Object.entries(run.collections).filter(([, one]) => !one.is_success).map(([name, one]) => `${name} failed: ${one.message}`).join("; ")],
  ]);
}

/** Show the details card anew; it holds nothing that has focus. */
export function renderDetails(element, run, optimizer) {
  const logged = [...Object.entries(run.validation_losses).map(([name, value]) => [`Validation loss, ${name}`, format.number(value)]),
    ...Object.entries(run.metrics).map(([name, value]) => [name, format.number(value)])];
  const { host, run: info } = run;
  const block = (title, list) => (list ? h("div", { class: "block" }, h("h3", {}, title), list) : null);
  const blocks = [
    block("Logged by the script", facts(logged)),
    block(info.resume_time ? "Counters, since the resume" : "Counters", counters(run, optimizer)),
    ...run.gpus.map((gpu) => block(`GPU ${gpu.index} · ${gpu.model}`, gpuFacts(gpu))),
    block("Machine", facts([
      ["CPU", format.percent(host?.cpu_utilization_ratio)],
      ["Memory", host ? share(host.memory_used_bytes, host.memory_total_bytes) : null],
      ["Training", host ? format.bytes(host.tree_resident_bytes) : null],
      ["Host", info.hostname && `${info.hostname}, process ${info.pid}`],
      ["Device", info.device],
      ["Ranks", info.world_size > 1 ? `rank ${info.rank} of ${info.world_size}` : null],
      ["Started", format.clock(info.start_time)],
      ["Optimizer", optimizer?.class_name],
      ["Versions", [info.torch_version && `torch ${info.torch_version}`, info.monitor_version && `monitor ${info.monitor_version}`].filter(Boolean).join(", ")],
      ["Commit", info.git_commit.slice(0, 12)],
    ])),
  ];
  element.replaceChildren(h("h2", { id: "details-title" }, "Details"), h("div", { class: "blocks" }, blocks));
}
