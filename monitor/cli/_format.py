"""Answers of the API as text for a person: numbers as they are, NaN as NaN, and ``-`` for what is not known."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from monitor.common import one_line

Document = Mapping[str, Any]
UNKNOWN = "-"
_WIDEST = 2000
"""Columns that a table may have, far beyond any terminal."""


def number(value: Any, digits: int = 4) -> str:
    """Return a number with ``digits`` significant digits; the API's words for what is not finite as they are.

    >>> number(2.30258), number(0.003), number(1.5e-05), number("NaN"), number(None)
    ('2.303', '0.003', '1.5e-05', 'NaN', '-')
    """
    if value is None:
        return UNKNOWN
    if isinstance(value, str):
        return value[:16]  # "NaN", "Infinity"; from a file, anything
    if math.isfinite(value) and 10**digits <= abs(value) < 1e9:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def count(value: Any) -> str:
    """Return a whole number with its thousands apart.

    >>> count(12345)
    '12,345'
    """
    return UNKNOWN if value is None else f"{value:,}"


def duration(seconds: Any) -> str:
    """Return a time span in its two largest units.

    >>> duration(0.12), duration(42), duration(4000), duration(200000)
    ('0.1 s', '42 s', '1 h 6 min', '2 d 7 h')
    """
    if seconds is None or isinstance(seconds, str):
        return UNKNOWN
    seconds = max(0.0, float(seconds))
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def size(num_bytes: Any) -> str:
    """Return a size in GiB or MiB.

    >>> size(3 * 2**30), size(5 * 2**20)
    ('3.0 GiB', '5 MiB')
    """
    if num_bytes is None:
        return UNKNOWN
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.0f} MiB"


def percent(ratio: Any, digits: int = 0) -> str:
    """Return a ratio in percent.

    >>> percent(0.416), percent(0.0042, 2)
    ('42 %', '0.42 %')
    """
    return UNKNOWN if ratio is None or isinstance(ratio, str) else f"{100 * ratio:.{digits}f} %"


def table(rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> list[str]:
    """Return rows as lines with aligned columns; ``right`` names the columns that are flush right."""
    rows, right = list(rows), set(right)
    grid = Table.grid(padding=(0, 2), pad_edge=False)
    for index in range(max(map(len, rows))):
        grid.add_column(justify="right" if index in right else "left", no_wrap=True)
    for row in rows:
        grid.add_row(*(Text(one_line(cell)) for cell in row))
    # As wide as it is, also in a narrow terminal or a pipe: a value that is cut off is no value.
    console = Console(file=io.StringIO(), width=_WIDEST, color_system=None)
    with console.capture() as lines:
        console.print(grid)
    return [line.rstrip() for line in lines.get().splitlines()]


def step_of(run: Document) -> int | None:
    """Return the run's step: that of its first optimizer, which ``total_steps`` and the time left count too."""
    return next((optimizer["global_step"] for optimizer in run["optimizers"]), None)


def summary(run: Document | None, known: Document) -> dict[str, Any]:
    """Return one run as ``monitor runs --json`` tells it; ``run`` is its last state, if it could be had."""
    optimizers = run["optimizers"] if run else ()
    first = optimizers[0] if optimizers else {}
    groups = [group["applied"] for optimizer in optimizers for group in optimizer["groups"]]
    return {
        **{key: known[key] for key in ("run_id", "name", "state", "pid", "hostname", "url", "start_time", "end_time")},
        "rank": known.get("rank", 0),
        "num_ranks": num_ranks(run) if run else 1,
        "step": step_of(run) if run else None,
        "target_steps": run["target_steps"] if run else None,
        "loss": first.get("loss"),
        "lr": groups[0] if groups else None,
        "last_step_time": run["last_step_time"] if run else None,
    }


def num_ranks(run: Document) -> int:
    """Return how many ranks train together. A state that an earlier version has left knows of none."""
    return len(run.get("ranks", ())) or int(run["run"]["world_size"])


def runs_table(summaries: Sequence[Document], now: float) -> list[str]:
    """Return the lines of ``monitor runs``."""
    has_ranks = any(run["rank"] or run["num_ranks"] > 1 for run in summaries)
    rows = [("RUN", *(("RANK",) if has_ranks else ()), "STATE", "STEP", "LOSS", "LR", "LAST STEP", "URL")]
    for run in summaries:
        last = run["last_step_time"]
        age = UNKNOWN if last is None else f"{duration(now - last)} ago"
        whose = (run["run_id"], rank_of(run)) if has_ranks else (run["run_id"],)
        row = (*whose, run["state"], count(run["step"]), number(run["loss"]), number(run["lr"]), age)
        rows.append((*row, run["url"] or UNKNOWN))
    return table(rows, right=(1, 3, 4, 5, 6) if has_ranks else (2, 3, 4, 5))


def rank_of(run: Document) -> str:
    """Return the rank of a run, or how many ranks are known from it, where that is more.

    >>> rank_of({"rank": 0, "num_ranks": 4}), rank_of({"rank": 3, "num_ranks": 4})
    ('4 ranks', '3')
    """
    return f"{run['num_ranks']} ranks" if run["num_ranks"] > 1 and not run["rank"] else str(run["rank"])


def ranks_table(ranks: Sequence[Document], is_ended: bool, num_ranks: int | None = None) -> list[str]:
    """Return how far each rank is, or was when rank 0's run ended, one a line. ``num_ranks``: how many there are, where
    these are not all."""
    if not ranks:
        return []
    when, since = (" at the end", "before") if is_ended else ("", "ago")
    rows = [
        (
            f"{num_ranks or len(ranks)} ranks{when}",
            "state",
            "step",
            "step time",
            "own time",
            "loss",
            "last seen",
            "host",
        )
    ]
    for one in ranks:
        seen = UNKNOWN if one["last_seen_seconds"] is None else f"{duration(one['last_seen_seconds'])} {since}"
        times = (UNKNOWN if one.get(time) is None else f"{number(one[time])} s" for time in ("step_time", "own_time"))
        row = (str(one["rank"]), one["state"].replace("_", " "), count(one["step"]), *times, number(one["loss"]))
        rows.append((*row, seen, one["host"] or UNKNOWN))
    return table(rows, right=(2, 3, 4, 5, 6))


def status(run: Document, url: str | None, now: float) -> list[str]:
    """Return the lines of ``monitor status``."""
    info = run["run"]
    lines = [f"{info['run_id']}  {run['state']}" + (f"  {url}" if url else "")]
    rows = [*progress_rows(run, now)]
    for optimizer in run["optimizers"]:
        rows += optimizer_rows(run, optimizer)
    rows += other_rows(run)
    lines += [f"  {line}" for line in table(rows)]
    lines += [f"  {line}" for line in lr_table(groups_of(run))]
    lines += [f"  {line}" for line in ranks_table(run.get("ranks", ()), run["end_time"] is not None)]
    return lines


def is_whole(run: Document) -> bool:
    """Tell whether a document, which may come from anywhere, has all that is shown of a run.

    >>> is_whole({"state": "finished"})
    False
    """
    known = dict.fromkeys(("run_id", "name", "pid", "hostname", "url", "start_time", "end_time"), UNKNOWN)
    try:
        runs_table([summary(run, {**known, "state": run["state"]})], 0.0)
        status(run, None, 0.0)
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        return False
    return True


def groups_of(run: Document) -> list[dict[str, Any]]:
    """Return the param groups of a run in the form of ``GET /lr``."""
    return [
        {**group, "optimizer": optimizer["key"], "param_group": group["index"]}
        for optimizer in run["optimizers"]
        for group in optimizer["groups"]
    ]


def lr_table(groups: Sequence[Document]) -> list[str]:
    """Return the learning rates, one param group a line."""
    if not groups:
        return []
    rows = [("group", "LR applied", "scheduled", "factor")]
    for group in groups:
        figures = (number(group["applied"]), number(group["scheduled"]), number(group["factor"]))
        rows.append((group_name(group, groups), *figures))
    return table(rows, right=(1, 2, 3))


def outcome(record: Document, run_id: str) -> list[str]:
    """Return what became of a command."""
    action = record["action"] + (f" {number(record['factor'])}" if record["factor"] is not None else "")
    if record["status"] == "pending":
        return [f"{action}: accepted by {run_id} as {record['id']}, to be applied at its next step"]
    if record["status"] != "applied":
        return [f"{action}: {record['status']}: {record['message'] or 'no reason was given'}"]
    at = "" if record["step"] is None else f" at step {count(record['step'])}"
    lines = [f"{action}: applied{at} of {run_id}"]
    if record["message"]:
        lines[0] += f" ({record['message']})"
    changes = record["changes"]
    rows = [
        (
            f"{change['optimizer']}/{_numbered(change)}",
            f"factor {number(change['factor_before'])} -> {number(change['factor_after'])}",
            f"LR {number(change['lr_before'])} -> {number(change['lr_after'])}",
        )
        for change in changes
    ]
    return lines + [f"  {line}" for line in (table(rows) if rows else [])]


def group_name(group: Document, groups: Sequence[Document]) -> str:
    """Return what to call a param group among others: with its optimizer where there are several, as it is given to
    ``--group``."""
    name = _numbered(group)
    return name if len({other["optimizer"] for other in groups}) == 1 else f"{group['optimizer']}/{name}"


def _numbered(group: Document) -> str:
    return f"{group['param_group']}" + (f" {group['name']}" if group["name"] else "")


def host_of(run: Document) -> str:
    """Return what is known of the machine; an empty string where nothing is."""
    host = run["host"] or {}
    parts = []
    if host.get("cpu_utilization_ratio") is not None:
        parts.append(f"{percent(host['cpu_utilization_ratio'])} CPU")
    if host.get("memory_used_bytes") is not None:
        parts.append(f"{size(host['memory_used_bytes'])} of {size(host['memory_total_bytes'])} memory")
    return ", ".join(parts)


def cost_of(run: Document) -> str:
    """Return what the hooks cost over the trailing window: share of the step time and microseconds a step."""
    ratio, rate = run["overhead_ratio"], run["steps_per_second"]
    if ratio is None or isinstance(ratio, str):
        return ""
    each = f", {number(1e6 * ratio / rate, 3)} µs a step" if rate else ""
    return f"{percent(ratio, 2)} of the step time{each}"


def progress_rows(run: Document, now: float) -> Iterator[tuple[str, str]]:
    """Return name and text of what says how far a run is."""
    step, target = step_of(run), run["target_steps"]
    parts = [count(step)]
    if target and step is not None:
        parts[0] += f" of {count(target)} ({percent(step / target)})"
    if run["steps_per_second"] is not None and run["end_time"] is None:
        parts.append(f"{number(run['steps_per_second'], 3)} steps/s")
    if run["eta_seconds"] is not None and run["end_time"] is None:
        parts.append(f"{duration(run['eta_seconds'])} left")
    if run["last_step_time"] is not None and run["end_time"] is None:
        parts.append(f"last {duration(now - run['last_step_time'])} ago")
    yield "step", ", ".join(parts)
    if run["end_time"] is None:
        since = "since the start" if run["run"].get("resume_time") is None else "in all its sessions"
        yield "time", f"{duration(elapsed_seconds(run))} {since}"
    else:
        yield "time", f"took {duration(elapsed_seconds(run))}"


def elapsed_seconds(run: Document) -> float:
    """Return how long a run has gone on, by its own monotonic clock; what an earlier version has left on disk holds
    times of the wall clock alone."""
    end = run["time"] if run["end_time"] is None else run["end_time"]
    elapsed: float = run.get("elapsed_seconds", end - run["run"]["start_time"])
    return elapsed


def optimizer_rows(run: Document, optimizer: Document) -> Iterator[tuple[str, str]]:
    """Return name and text of what is known of one optimizer, its learning rates apart."""
    if len(run["optimizers"]) > 1:
        yield "optimizer", f"{optimizer['key']} ({optimizer['class_name']}), step {count(optimizer['global_step'])}"
    loss = [number(optimizer["loss"]) + _of_ranks(run)]
    if optimizer["loss"] is None and optimizer["steps"]:
        loss[0] += " (not known for the last step)"
    if optimizer["loss_ema"] is not None:
        loss.append(f"smoothed {number(optimizer['loss_ema'])}")
    if optimizer["loss_best"] is not None:
        loss.append(
            f"lowest smoothed loss {number(optimizer['loss_best'])} at step {count(optimizer['loss_best_step'])}"
        )
    yield "loss", ", ".join(loss)
    norm = [number(optimizer["gradient_norm"])]
    if reason := optimizer.get("gradient_norm_reason"):
        norm.append(reason)
    if optimizer.get("gradient_norm_step") not in (None, optimizer["global_step"]):
        norm.append(f"at step {count(optimizer['gradient_norm_step'])}")
    if optimizer["clip_threshold"] is not None:
        norm.append(f"clipped above {number(optimizer['clip_threshold'])}")
    if optimizer["clip_share"] is not None:
        norm.append(f"{percent(optimizer['clip_share'])} of the last steps")
    yield "gradient norm", ", ".join(norm)
    yield from _trouble_rows(optimizer)


def _of_ranks(run: Document) -> str:
    """Say of whose shares of the batch a loss is the mean, where several ranks train together."""
    info, summed = run["run"], run.get("summed_ranks", 1)
    if summed > 1:
        of_all = "" if summed == info["world_size"] else f" of {info['world_size']}"
        return f", mean of {summed}{of_all} ranks"
    return f" on rank {info['rank']} of {info['world_size']}" if info["world_size"] > 1 else ""


_SKIPS = {"amp_overflow": "GradScaler overflow"}
_NOT_FINITE = {"loss": ("loss", "losses"), "gradient": ("gradient", "gradients")}


def _trouble_rows(optimizer: Document) -> Iterator[tuple[str, str]]:
    """A step that a GradScaler skips is its way of finding a scale; a loss that is NaN is trouble: told apart."""
    if skipped := {kind: times for kind, times in optimizer["skipped_steps"].items() if times}:
        yield (
            "skipped steps",
            ", ".join(f"{count(times)} ({_SKIPS.get(kind, kind)})" for kind, times in skipped.items()),
        )
    if found := {kind: times for kind, times in optimizer["nonfinite"].items() if times}:
        words = ((times, *_NOT_FINITE.get(kind, (kind, kind))) for kind, times in found.items())
        yield "not finite", ", ".join(f"{count(times)} {one if times == 1 else many}" for times, one, many in words)


def other_rows(run: Document) -> Iterator[tuple[str, str]]:
    """Return name and text of what belongs to the run as a whole: values that were logged, events, machine, cost."""
    for name, value in run["validation_losses"].items():
        yield "validation" if len(run["validation_losses"]) == 1 else f"validation {name}", number(value)
    for name, value in run["metrics"].items():
        yield name, number(value)
    if active := [kind for kind, is_active in run["events_active"].items() if is_active]:
        yield "now" if run["end_time"] is None else "at the end", ", ".join(active)
    if past := [f"{count(times)} {kind}" for kind, times in run["events_total"].items() if times]:
        yield "events", ", ".join(past)
    for gpu in run["gpus"]:
        memory = f"{size(gpu['memory_used_bytes'])} of {size(gpu['memory_total_bytes'])}"
        yield f"GPU {gpu['index']}", f"{gpu['model']}, {percent(gpu['utilization_ratio'])} busy, {memory}"
    if host := host_of(run):
        yield "host", host
    if cost := cost_of(run):
        yield "monitor", cost
    if errors := [f"{count(times)} in {component}" for component, times in run["errors"].items() if times]:
        yield "own failures", ", ".join(errors)
