"""``monitor top`` as one screen: what the API says of a run, for rich to draw. Text of the run is never markup."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from monitor.cli import _format
from monitor.common import one_line

LEVELS = "▁▂▃▄▅▆▇█"
ASCII_LEVELS = "_.-=+*#@"
MAX_GROUPS = 8
MAX_EVENTS = 12
MIN_EVENTS = 2
"""Events that are shown below the table of ranks."""
MAX_RANKS = 18
MIN_RANKS = 3
"""Lines that the table of ranks has at most, and however low the screen, its head included."""
_BLANK_LINES = 2
_STATE_STYLES = {
    "running": "bold green",
    "finished": "bold green",
    "paused": "bold yellow",
    "interrupted": "bold yellow",
    "failed": "bold red",
    "vanished": "bold red",
}
_RANK_STYLES = {"lost": "bold red", "behind": "yellow", "not_attached": "yellow"}
_SEVERITY_STYLES = {"critical": "bold red", "warning": "yellow", "info": "dim"}
_URGENT = ("now", "at the end", "not finite")
"""Rows that are told in red."""
_Row = tuple[str, str]
_CURVES = {"loss": "loss", "gradient norm": "gradient_norm"}


@dataclass(frozen=True)
class Frame:
    """One look at a run: the answers to ``GET /run`` and ``/history``, and the newest events, oldest first."""

    run: Mapping[str, Any]
    history: Mapping[str, Any] = field(default_factory=dict)
    events: Sequence[Mapping[str, Any]] = ()


def screen(
    frame: Frame, now: float, *, width: int, height: int, url: str = "", note: str = "", is_ascii: bool = False
) -> RenderableType:
    """Return the screen of one look. ``note`` is one line of warning; ``is_ascii`` avoids block characters."""
    run = frame.run
    parts: list[RenderableType] = [_header(run, url)]
    if note:
        parts.append(_text(note, "bold yellow"))
    if bar := _bar(run, width):
        parts.append(bar)
    progress, groups = [*_format.progress_rows(run, now)], _format.groups_of(run)
    num_rates = min(len(groups), MAX_GROUPS) + 2
    free = height - len(parts) - len(progress) - _BLANK_LINES - (MIN_RANKS + 1 if _ranks_of(run) else 0)
    rows, other = _rows(frame, width - 20, is_ascii, free - num_rates)
    free, used = free - len(other), len(rows) + num_rates
    if used < free or len(run["optimizers"]) < 2:
        parts += [_grid([*progress, *rows, *other]), Text(), _rates(groups)]
    else:
        used = min(len(run["optimizers"]) + 1, max(3, free - 1))
        parts += [_grid([*progress, *other]), Text(), _optimizers(run["optimizers"], used)]
    return Group(*parts, *_bottom(frame, free - used))


def _ranks_of(run: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    ranks: Sequence[Mapping[str, Any]] = run.get("ranks", ())
    return ranks


def _rows(frame: Frame, width: int, is_ascii: bool, free: int) -> tuple[list[_Row], list[_Row]]:
    """Return the rows about the optimizers and the others. Where the ranks need the lines, the curves make way first,
    then what can be looked up on the page."""
    rows, other = _details(frame, width, is_ascii), [*_format.other_rows(frame.run)]
    free -= max(0, min(len(_ranks_of(frame.run)) + 1, MAX_RANKS) - MIN_RANKS)
    if not _ranks_of(frame.run) or len(rows) + len(other) <= free:
        return rows, other
    rows = _details(Frame(frame.run), width, is_ascii)
    return rows, other if len(rows) + len(other) <= free else [row for row in other if row[0] in _URGENT]


def _bottom(frame: Frame, free: int) -> list[RenderableType]:
    """Return the table of ranks, where there are several, and the newest events."""
    parts: list[RenderableType] = []
    if ranks := _ranks_of(frame.run):
        num_lines = min(MAX_RANKS, MIN_RANKS + max(0, free - MIN_EVENTS))
        lines = _ranks(ranks, frame.run["end_time"] is not None, num_lines)
        parts = [Text(), *lines]
        free += MIN_RANKS - len(lines)
    return [*parts, Text(), _events(frame.events[-min(MAX_EVENTS, max(1, free)) :])]


def _details(frame: Frame, width: int, is_ascii: bool) -> list[_Row]:
    """Return name and text of all that is known of each optimizer, with the curves."""
    rows: list[_Row] = []
    for optimizer in frame.run["optimizers"]:
        columns = frame.history.get("optimizers", {}).get(optimizer["key"], {})
        rows += _with_curves(_format.optimizer_rows(frame.run, optimizer), columns, width, is_ascii)
    return rows


def sparkline(values: Iterable[Any], width: int, is_ascii: bool = False) -> str:
    """Return a curve in one line of at most ``width`` characters; what is not finite is a cross, a gap is a blank.

    >>> sparkline([3, 2, None, "NaN", 1, 1], 6)
    '█▅ ×▁▁'
    """
    values = list(values)
    levels = ASCII_LEVELS if is_ascii else LEVELS
    num = min(width, len(values))
    bounds = [len(values) * i // max(1, num) for i in range(num + 1)]
    cells = [_cell(values[a:b]) for a, b in pairwise(bounds)]
    finite = [cell for cell in cells if cell is not None and math.isfinite(cell)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    step = (high - low) / (len(levels) - 1) or 1.0

    def drawn(cell: float | None) -> str:
        if cell is None:
            return " "
        return levels[round((cell - low) / step)] if math.isfinite(cell) else "x" if is_ascii else "×"

    return "".join(map(drawn, cells))


def _cell(values: Sequence[Any]) -> float | None:
    """Return the mean of what stands in one character; NaN if any of it is not finite, None where nothing is known."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    numbers = [math.nan if isinstance(value, str) else float(value) for value in known]
    return math.fsum(numbers) / len(numbers) if all(map(math.isfinite, numbers)) else math.nan


def _header(run: Mapping[str, Any], url: str) -> RenderableType:
    grid = Table.grid(expand=True, padding=(0, 1))
    grid.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    grid.add_column(justify="right", no_wrap=True)
    name, state = run["run"]["run_id"], run["state"]
    left = Text("  ").join([_text(name, "bold"), _text(state, _STATE_STYLES.get(state, "bold")), _text(url, "dim")])
    grid.add_row(left, Text("q leaves", "dim"))
    return grid


def _bar(run: Mapping[str, Any], width: int) -> RenderableType | None:
    step, target = _format.step_of(run), run["target_steps"]
    if not target or step is None:
        return None
    grid = Table.grid()  # a bar alone does not end its line
    grid.add_row(ProgressBar(total=target, completed=min(step, target), width=width))
    return grid


def _with_curves(
    rows: Iterable[tuple[str, str]], columns: Mapping[str, Sequence[Any]], width: int, is_ascii: bool
) -> Iterable[tuple[str, str]]:
    """Add below the loss and the gradient norm what course they have taken."""
    for name, text in rows:
        yield name, text
        values = columns.get(_CURVES.get(name, ""), ())
        if any(value is not None for value in values):
            yield "", sparkline(values, max(10, width), is_ascii)


def _grid(rows: Sequence[tuple[str, str]]) -> Table:
    grid = _columns(max((len(name) for name, _ in rows), default=0))
    for name, text in rows:
        grid.add_row(_text(name, "dim"), _text(text, "bold red" if name in _URGENT else ""))
    return grid


def _columns(*widths: int) -> Table:
    """Return a table whose last column takes what the others, of fixed widths, leave."""
    grid = Table.grid(expand=True, padding=(0, 2))
    for width in widths:
        grid.add_column(no_wrap=True, width=width)
    grid.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    return grid


def _rates(groups: Sequence[Mapping[str, Any]]) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, overflow="ellipsis")
    for _ in range(3):
        table.add_column(justify="right", no_wrap=True)
    table.add_row(*(Text(title, "dim") for title in ("group", "LR applied", "scheduled", "factor")))
    for group in groups[:MAX_GROUPS]:
        figures = [_text(_format.number(group[name])) for name in ("applied", "scheduled")]
        factor = _text(_format.number(group["factor"]), "" if group["factor"] == 1.0 else "bold yellow")
        table.add_row(_text(_format.group_name(group, groups)), *figures, factor)
    if len(groups) > MAX_GROUPS:
        table.add_row(Text(f"and {len(groups) - MAX_GROUPS} more", "dim"))
    return table


def _ranks(ranks: Sequence[Mapping[str, Any]], is_ended: bool, num_lines: int) -> list[Text]:
    """Return one line for each rank, those that are in trouble first where not all fit; say how many are not shown."""
    num_shown = len(ranks) if len(ranks) < num_lines else num_lines - 2
    shown = sorted(sorted(ranks, key=_trouble)[:num_shown], key=lambda one: int(one["rank"]))
    title, *lines = _format.ranks_table(shown, is_ended, len(ranks))
    styled = [_line(line, _RANK_STYLES.get(one["state"], "")) for line, one in zip(lines, shown, strict=True)]
    more = [Text(f"and {len(ranks) - num_shown} more", "dim")] if num_shown < len(ranks) else []
    return [_line(title, "dim"), *styled, *more]


def _trouble(rank: Mapping[str, Any]) -> tuple[bool, int]:
    return rank["state"] not in _RANK_STYLES, int(rank["rank"])


def _line(content: str, style: str) -> Text:
    """Return a line that a narrow terminal cuts off."""
    line = _text(content, style)
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def _optimizers(optimizers: Sequence[Mapping[str, Any]], num_lines: int) -> RenderableType:
    """Return one line for each optimizer where the screen is too low for more; say how many are not shown."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, overflow="ellipsis")
    titles = ("step", "loss", "smoothed", "gradient norm", "LR applied", "factor")
    for _ in titles:
        table.add_column(justify="right", no_wrap=True)
    table.add_row(*(Text(title, "dim") for title in ("optimizer", *titles)))
    is_all = len(optimizers) < num_lines
    for one in optimizers if is_all else optimizers[: num_lines - 2]:
        figures = [_format.number(one[name]) for name in ("loss", "loss_ema", "gradient_norm")]
        rates = [_span(group[name] for group in one["groups"]) for name in ("applied", "factor")]
        table.add_row(*map(_text, (one["key"], _format.count(one["global_step"]), *figures, *rates)))
    if not is_all:
        table.add_row(Text(f"and {len(optimizers) - num_lines + 2} more", "dim"))
    return table


def _span(values: Iterable[Any]) -> str:
    """Return the one value of all param groups, or how many there are."""
    texts = {_format.number(value) for value in values}
    return texts.pop() if len(texts) == 1 else f"{len(texts)} values" if texts else _format.UNKNOWN


def _events(events: Sequence[Mapping[str, Any]]) -> RenderableType:
    if not events:
        return Text("no events yet", "dim")
    steps = [_format.count(event["step"]) for event in events]
    grid = _columns(max(map(len, steps)), max(len(event["kind"]) for event in events))
    for step, event in zip(steps, events, strict=True):
        style = _SEVERITY_STYLES.get(event["severity"], "")
        grid.add_row(Text(step, "dim", justify="right"), _text(event["kind"], style), _text(event["message"]))
    return grid


def _text(content: str, style: str = "") -> Text:
    """Return text of the run as one line that cannot steer the terminal."""
    return Text(one_line(content), style)
