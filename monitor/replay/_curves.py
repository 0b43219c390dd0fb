"""Read a finished training curve from a file, as people write them: CSV, JSON lines, transformers' trainer_state.json.

Gaps, several rows a step, unsorted steps, empty cells and ``NaN``, ``nan``, ``Infinity`` are read; anything else is
refused with the line at fault.
"""

from __future__ import annotations

import csv
import functools
import json
import math
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, cast

from monitor._checks import is_number
from monitor._records import ParamGroup, Sample, Step

_NAMES = {
    "step": ("step", "steps", "global_step", "iteration", "iter", "epoch"),
    "loss": ("loss", "train_loss", "training_loss", "train/loss"),
    "grad_norm": ("grad_norm", "gradient_norm", "train/grad_norm"),
    "lr": ("lr", "learning_rate", "train/learning_rate"),
}
_VALIDATION = re.compile(r"(?:val|eval|valid|validation)[_/](?:(?P<name>.+)_)?loss")
_EPOCH = 100.0
"""Steps that an epoch has at least, where a file does not say."""
_LEAST, _MOST = 1e-9, 1e15
"""Steps between two records that the detectors take."""
_EMPTY = {"", "none", "null", "na", "n/a", "-"}


@dataclass(slots=True)
class CurveRow:
    """What a file says about one step. ``line`` is where."""

    line: int
    step: float | None = None
    loss: float | None = None
    grad_norm: float | None = None
    lr: float | None = None
    val_losses: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Curve:
    """A curve as the detectors take it: records in the order of their steps, in the unit of the file's step column."""

    records: tuple[Step | Sample, ...]
    steps_per_record: float

    @property
    def losses(self) -> tuple[list[float], list[float]]:
        """Steps and training losses."""
        pairs = [(r.global_step, r.loss) for r in self.records if isinstance(r, Step) and r.loss is not None]
        return [float(step) for step, _ in pairs], [loss for _, loss in pairs]

    @property
    def val_losses(self) -> tuple[list[float], list[float]]:
        """Steps and validation losses."""
        pairs = [(r.step, r.value) for r in self.records if isinstance(r, Sample)]
        return [float(step) for step, _ in pairs], [value for _, value in pairs]


def read_curve(path: str | Path) -> Curve:
    """Read the curve in ``path``.

    The form is inferred from the content, not the name. Columns or keys: ``step`` (or iteration, else epoch; without
    any, rows are numbered from 1), ``loss`` (or train_loss), and where there are any ``grad_norm``, ``lr`` (or
    learning_rate), ``val_loss`` (or eval_loss, ``eval_<dataset>_loss``). Others are passed over. Rows are sorted by
    step; rows of one step are joined where they say different things, and stay two records where both have a loss.

    Raises:
        ValueError: the file is none of these forms; the message begins with ``path:line``.
        OSError: it cannot be read.

    >>> read_curve("run.csv").steps_per_record
    1.0
    """
    path = Path(path)
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        _refuse(
            path, raw[: error.start].count(b"\n") + 1, "is not text; expected CSV, JSON lines or a trainer_state.json"
        )
    start = text.lstrip()[:1]
    if start == "{":
        rows = _read_json(path, text)
    elif start:
        rows = _read_csv(path, text)
    else:
        _refuse(path, 1, "the file is empty")
    curve = _as_curve(rows)
    if not curve.records:
        _refuse(path, 1, "no row has a loss, a grad_norm or a val_loss")
    return curve


def _refuse(path: Path, line: int, reason: str) -> NoReturn:
    raise ValueError(f"{path}:{line}: {reason}")


def _read_csv(path: Path, text: str) -> list[CurveRow]:
    lines = text.splitlines()
    head = next(index for index, line in enumerate(lines) if line.strip())
    delimiter = max(",;\t", key=lines[head].count)
    names = [name.strip().strip('"').lower() for name in lines[head].split(delimiter)]
    chosen = _choose(tuple(names))
    known = {names.index(name): what for name, what in chosen.items()}
    if not any(what != "step" and what != "lr" for what in known.values()):
        shown = lines[head][:60]
        _refuse(path, head + 1, f"expected a header with step and loss (CSV) or a JSON object, got {shown!r}")
    reader = csv.reader(lines[head + 1 :], delimiter=delimiter)
    rows = []
    try:
        for cells in reader:
            line = head + 1 + reader.line_num
            if len(cells) > len(names):
                _refuse(path, line, f"{len(cells)} cells under a header of {len(names)}")
            row = CurveRow(line)
            for index, what in known.items():
                cell = cells[index].strip() if index < len(cells) else ""
                if cell.lower() not in _EMPTY:
                    _put(row, what, _parse(path, line, what, cell))
            rows.append(row)
    except csv.Error as error:
        _refuse(path, head + 1 + reader.line_num, f"is not CSV: {error}")
    return rows


@functools.lru_cache(maxsize=256)
def _choose(names: tuple[str, ...]) -> dict[str, str]:
    """Return which columns or keys to read, and what each is about; of a validation loss ``val:`` and the dataset.

    Where a file has two names for one thing, such as step and epoch, the first in ``_NAMES`` is taken.
    """
    lowered = {name.lower(): name for name in reversed(names)}
    chosen = {}
    for what, aliases in _NAMES.items():
        present = next((alias for alias in aliases if alias in lowered), None)
        if present is not None:
            chosen[lowered[present]] = what
    for low, name in lowered.items():
        match = _VALIDATION.fullmatch(low)
        if match is not None:
            chosen[name] = f"val:{match['name'] or ''}"
    return chosen


def _parse(path: Path, line: int, what: str, value: Any) -> float:
    if not (is_number(value) or isinstance(value, str)):
        _refuse(path, line, f"{what} must be a number, got {value!r:.60}")
    try:
        number = float(value)
    except ValueError:
        _refuse(path, line, f"{what} must be a number, got {value!r:.60}")
    except OverflowError:
        number = math.inf
    if what == "step" and not math.isfinite(number):
        _refuse(path, line, f"step must be finite, got {value!r}")
    return number


def _put(row: CurveRow, what: str, value: float) -> None:
    if what.startswith("val:"):
        row.val_losses[what.removeprefix("val:") or "validation"] = value
    else:
        setattr(row, what, value)


def _read_json(path: Path, text: str) -> list[CurveRow]:
    """Read JSON lines, or one object with a ``log_history``, whichever it is."""
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return _read_json_lines(path, text)
        _refuse(path, error.lineno, f"is not JSON: {error.msg}")
    except (ValueError, RecursionError) as error:
        _refuse(path, 1, f"is not JSON that can be read: {error}")
    if not isinstance(whole, dict):
        _refuse(path, 1, "expected a JSON object")
    if "log_history" not in whole:
        return _read_json_lines(path, text) if "\n" not in text.strip() else _refuse(path, 1, "has no log_history")
    history = whole["log_history"]
    if not isinstance(history, list):
        _refuse(path, 1, "log_history must be a list")
    starts = _entry_lines(text)
    return [_row_of(path, next(starts, 1), entry) for entry in history]


def _entry_lines(text: str) -> Iterator[int]:
    """Yield the line of each entry of the log_history, as json.dump(indent=...) writes it; for messages only."""
    at = max(0, text.find('"log_history"'))
    line = text.count("\n", 0, at) + 1
    for match in re.finditer(r"\{", text[at:]):
        yield line + text.count("\n", at, at + match.start())


def _read_json_lines(path: Path, text: str) -> list[CurveRow]:
    lines = ((number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip())
    return [_row_of(path, number, _read_entry(path, number, line)) for number, line in lines]


def _read_entry(path: Path, line: int, content: str) -> Any:
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        _refuse(path, line, f"is not JSON: {error.msg}")
    except (ValueError, RecursionError) as error:
        _refuse(path, line, f"is not JSON that can be read: {error}")


def _row_of(path: Path, line: int, entry: Any) -> CurveRow:
    if not isinstance(entry, Mapping):
        _refuse(path, line, f"expected a JSON object, got {str(entry)[:60]!r}")
    row = CurveRow(line)
    # transformers ends with a summary of the whole run, whose train_loss is a mean over all of it.
    is_summary = "train_runtime" in entry
    for key, what in _choose(tuple(map(str, entry))).items():
        value = entry.get(key)
        is_empty = value is None or (isinstance(value, str) and value.strip().lower() in _EMPTY)
        if not is_empty and not (is_summary and what == "loss"):
            _put(row, what, _parse(path, line, what, value))
    return row


def _as_curve(rows: list[CurveRow]) -> Curve:
    has_steps = any(row.step is not None for row in rows)
    before = 0.0
    for number, row in enumerate(rows, 1):
        if row.step is None:
            # An empty cell in a step column: a second row of the step before.
            row.step = before if has_steps else float(number)
        before = row.step
    rows = _joined(sorted(rows, key=lambda row: row.step or 0.0))
    is_whole = all((row.step or 0.0).is_integer() and abs(row.step or 0.0) < 2**53 for row in rows)
    records: list[Step | Sample] = []
    for number, row in enumerate(rows, 1):
        step = row.step or 0.0
        # Epochs as fractions stay fractions: the events are to be in the unit of the file.
        records.extend(_records(row, number, int(step) if is_whole else cast(int, step)))
    return Curve(tuple(records), _steps_per_record([row for row in rows if row.loss is not None]))


def _joined(rows: list[CurveRow]) -> list[CurveRow]:
    """Join rows of one step that say different things; the first to say a thing keeps it."""
    out: list[CurveRow] = []
    for row in rows:
        last = out[-1] if out else None
        if last is None or last.step != row.step or _clash(last, row):
            out.append(row)
            continue
        last.loss = row.loss if last.loss is None else last.loss
        last.grad_norm = row.grad_norm if last.grad_norm is None else last.grad_norm
        last.lr = row.lr if last.lr is None else last.lr
        last.val_losses = {**last.val_losses, **row.val_losses}
    return out


def _clash(one: CurveRow, other: CurveRow) -> bool:
    return (
        (one.loss is not None and other.loss is not None)
        or (one.grad_norm is not None and other.grad_norm is not None)
        or bool(one.val_losses.keys() & other.val_losses.keys())
    )


def _records(row: CurveRow, number: int, step: int) -> Iterator[Step | Sample]:
    if row.loss is not None or row.grad_norm is not None:
        groups = () if row.lr is None else (ParamGroup(0, None, row.lr, row.lr),)
        yield Step("", number, step, float(number), None, row.loss, row.grad_norm, groups)
    for name, value in row.val_losses.items():
        yield Sample("val_loss", name, value, step, float(number))


def _steps_per_record(rows: Sequence[CurveRow]) -> float:
    """Return the usual distance of two records, 1 where there are too few to tell.

    Rows that mostly come with a validation loss are epochs, whatever their column is called: nobody validates after
    every step.
    """
    gaps = [b - a for a, b in pairwise(row.step or 0.0 for row in rows) if b > a]
    usual = min(max(statistics.median(gaps), _LEAST), _MOST) if gaps else 1.0
    are_epochs = 2 * sum(bool(row.val_losses) for row in rows) > len(rows)
    return max(usual, _EPOCH) if are_epochs else usual
