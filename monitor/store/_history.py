"""The curves of a run out of its store, in the form in which a live run's HTTP API gives them."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from typing import Any

from monitor._records import MAX_GROUPS, PHASES
from monitor.store._columns import OPTIMIZER, READINGS
from monitor.store._curve import Point, last_steps
from monitor.store._reader import StoreReader

MAX_PARTS, PART_POINTS, PART_GROUPS = 8, 200, 8
_DRAWN = ("loss", "loss_ema", "gradient_norm")
_PLAIN = ("clip_threshold", "step_seconds")


def read_history(store: StoreReader, points: int = 1000, *, since: int = 0) -> dict[str, Any]:
    """Return the whole run as ``GET /api/v1/history`` does.

    ::

        with StoreReader(folder) as store:
            loss = read_history(store)["optimizers"]["AdamW"]["loss"]

    Each optimizer has at most ``points`` points. One that stands for ``count`` steps has their mean; a live run gives
    the learning rate, the smoothed loss and the clip threshold of the last of them. Durations have seven digits.
    ``system`` has the readings of the machine, of all attempts; a point that stands for several has their mean.

    Steps that a later attempt did over stand apart, under ``abandoned``: the newest MAX_PARTS parts of each optimizer,
    in PART_POINTS points each, with losses, gradient norms and learning rates alone. ``attempt`` is the number of the
    last attempt. ``since`` is a cursor, the ``next`` of an earlier answer: of the same points only those after it are
    returned, and nothing that was abandoned.

    Raises:
        ValueError: for ``points`` out of range.
        StoreError: if the store cannot be read.
    """
    kept: dict[str, set[str]] = {}
    for series in store.series():
        if series.kind == OPTIMIZER:
            kept.setdefault(series.name, set()).add(series.column)
    optimizers = {name: _columns(store, name, columns, points) for name, columns in kept.items()}
    counts = [count for columns in optimizers.values() for count in columns["count"]]
    end = sum(counts)
    time = _time_of(optimizers, since) if since else -math.inf
    if since:
        optimizers = {key: _after(columns, time) for key, columns in optimizers.items()}
        counts = [count for columns in optimizers.values() for count in columns["count"]]
    return {
        "since": since,
        "next": max(since, end),
        "resolution": max(counts, default=1),
        "optimizers": optimizers,
        "system": _after(_readings(store, points), time),
        "attempt": max((attempt.number for attempt in store.attempts()), default=0),
        "abandoned": {} if since else {name: _abandoned(store, name, columns) for name, columns in kept.items()},
    }


def _abandoned(store: StoreReader, optimizer: str, kept: set[str]) -> list[dict[str, Any]]:
    groups = _groups(kept)[:PART_GROUPS]
    names = [*_DRAWN, *_rates(groups)]
    parts = store.abandoned(OPTIMIZER, optimizer)[-MAX_PARTS:]
    return [
        _drawn(
            dict(zip(names, store.curves(OPTIMIZER, optimizer, names, points=PART_POINTS, part=part), strict=True)),
            groups,
        )
        for part in parts
    ]


def _readings(store: StoreReader, points: int) -> dict[str, Any]:
    """Return the readings of the machine as columns, those of a GPU below its index."""
    names = [series.column for series in store.series() if series[:2] == READINGS]
    found = store.curves(*READINGS, names, points=points, with_abandoned=True)
    columns: dict[str, Any] = {"time": [point.time for point in found[0]] if found else [], "gpus": {}}
    for name, curve in zip(names, found, strict=True):
        *gpu, reading = name.removeprefix("gpus/").split("/")
        place = columns["gpus"].setdefault(gpu[0], {}) if gpu else columns
        place[reading] = [_shown(point) for point in curve]
    return columns


def _time_of(optimizers: dict[str, Any], since: int) -> float:
    """Return the time of a cursor, which counts the steps of all optimizers in the order of their times."""
    rows = sorted(row for columns in optimizers.values() for row in zip(columns["time"], columns["count"], strict=True))
    cursor, time = 0, -math.inf
    for row_time, count in rows:
        cursor += count
        if cursor > since:
            break
        time = row_time
    return time


def _after(columns: dict[str, Any], time: float) -> Any:
    """Leave out the rows up to a time."""
    return _from(columns, bisect_right(columns["time"], time))


def _from(columns: Any, index: int) -> Any:
    """Leave out the first rows of columns, however deep these lie."""
    if isinstance(columns, dict):
        return {name: _from(values, index) for name, values in columns.items()}
    return columns[index:]


def _columns(store: StoreReader, optimizer: str, kept: set[str], points: int) -> dict[str, Any]:
    groups = _groups(kept)
    names = [*_DRAWN, *_PLAIN, *(f"phase_seconds/{phase}" for phase in PHASES), *_rates(groups)]
    found = dict(zip(names, store.curves(OPTIMIZER, optimizer, names, points=points), strict=True))
    return {
        **_drawn(found, groups),
        **{name: [_shown(point) for point in found[name]] for name in _PLAIN},
        "phases": {phase: [_share(point) for point in found[f"phase_seconds/{phase}"]] for phase in PHASES},
    }


def _drawn(found: Mapping[str, list[Point]], groups: Iterable[int]) -> dict[str, Any]:
    """Return the columns that a part which was done over has as well."""
    loss, norm = found["loss"], found["gradient_norm"]

    def shown(name: str) -> list[float | None]:
        return [_shown(point) for point in found[name]]

    return {
        "step": last_steps(loss),
        "time": [point.time for point in loss],
        "count": [point.num_rows for point in loss],
        "loss": shown("loss"),
        "loss_min": [point.minimum for point in loss],
        "loss_max": [point.maximum for point in loss],
        "loss_ema": shown("loss_ema"),
        "gradient_norm": shown("gradient_norm"),
        "gradient_norm_max": [_shown(point) if point.nonfinite else point.maximum for point in norm],
        "lr": {
            str(index): {"scheduled": shown(f"lr_scheduled/{index}"), "applied": shown(f"lr_applied/{index}")}
            for index in groups
        },
    }


def _groups(kept: set[str]) -> list[int]:
    return [index for index in range(MAX_GROUPS) if f"lr_applied/{index}" in kept]


def _rates(groups: Iterable[int]) -> list[str]:
    return [f"{name}/{index}" for index in groups for name in ("lr_scheduled", "lr_applied")]


def _shown(point: Point) -> float | None:
    """The mean; a value that is not finite anywhere in the point shows instead of it."""
    return float(point.nonfinite[0]) if point.nonfinite else point.mean


def _share(point: Point) -> float:
    """What a step spent in a phase, on average over all steps: one without the phase spent nothing in it."""
    return (point.mean or 0.0) * point.num_finite / point.num_rows
