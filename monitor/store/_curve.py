"""Rows, buckets and points of a curve: what the blocks of a run hold at each resolution. Pure arithmetic, no I/O.

A row is one step of an optimizer or one logged value. Level 0 holds rows, level k buckets of 16**k rows. A bucket keeps
minimum, mean and maximum of the finite values, their number, the number of values that are not finite, and which.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from operator import mul
from typing import Any, NamedTuple

from monitor.store._codec import INTEGER, pack, unpack

FAN = 16
"""Buckets that are merged into one of the next level, and blocks that make one of the next level."""
IS_NAN, IS_POSITIVE_INFINITY, IS_NEGATIVE_INFINITY = 1, 2, 4
Number = float | None
Rows = tuple[list[Any], ...]
"""Columns of level 0: step, time in microseconds, and the values."""
Fields = tuple[list[Any], ...]


class Bucket(NamedTuple):
    """Neighbouring values of one column. ``mean``, ``low`` and ``high`` are of the ``num_finite`` finite ones, None if
    there are none."""

    mean: Any
    low: Any
    high: Any
    num_finite: int
    num_bad: int
    bad_kinds: int


class Point(NamedTuple):
    """A piece of a curve: ``num_rows`` rows from ``first_step`` to ``last_step``, made by one attempt.

    ``minimum``, ``mean`` and ``maximum`` are those of the ``num_finite`` finite values; None if there are none.
    ``num_nonfinite`` values are NaN or infinite, and ``nonfinite`` names which. ``time`` is the Unix time of the last
    row. ``is_abandoned`` means that a later attempt started over at an earlier step.
    """

    attempt: int
    first_step: int
    last_step: int
    time: float
    num_rows: int
    mean: float | None
    minimum: float | None
    maximum: float | None
    num_finite: int
    num_nonfinite: int = 0
    nonfinite: tuple[str, ...] = ()
    is_abandoned: bool = False

    @property
    def value(self) -> float | None:
        """The mean; where no value is finite, the NaN or infinity that was there."""
        if self.mean is None and self.nonfinite:
            return float(self.nonfinite[0])
        return self.mean


_NONFINITE = {"NaN": IS_NAN, "+Inf": IS_POSITIVE_INFINITY, "-Inf": IS_NEGATIVE_INFINITY}


def kinds_of(flags: int) -> tuple[str, ...]:
    """Return the names of what is not finite.

    >>> kinds_of(IS_NAN | IS_NEGATIVE_INFINITY)
    ('NaN', '-Inf')
    """
    return tuple(name for name, flag in _NONFINITE.items() if flags & flag)


def bucket_of(values: Sequence[Any]) -> Bucket:
    """Return values as one bucket.

    >>> bucket_of([1.0, None, 3.0, math.inf])
    Bucket(mean=2.0, low=1.0, high=3.0, num_finite=2, num_bad=1, bad_kinds=2)
    """
    try:
        total: float = sum(values)
    except TypeError:  # one is missing
        total = math.nan
    if math.isfinite(total) and values:
        low, high = min(values), max(values)
        return Bucket(min(max(total / len(values), low), high), low, high, len(values), 0, 0)
    given = [value for value in values if value is not None]
    finite = [value for value in given if math.isfinite(value)]
    flags = 0
    for value in given:
        flags |= _flag_of(value)
    if not finite:
        return Bucket(None, None, None, 0, len(given), flags)
    low, high = min(finite), max(finite)
    mean = math.fsum(value / len(finite) for value in finite)
    return Bucket(min(max(mean, low), high), low, high, len(finite), len(given) - len(finite), flags)


def _flag_of(value: float) -> int:
    if math.isfinite(value):
        return 0
    return IS_NAN if math.isnan(value) else IS_POSITIVE_INFINITY if value > 0 else IS_NEGATIVE_INFINITY


def merge(buckets: Sequence[Bucket]) -> Bucket:
    """Return several buckets as one.

    >>> merge([Bucket(1.0, 0.0, 2.0, 3, 0, 0), Bucket(5.0, 5.0, 5.0, 1, 2, 1)])
    Bucket(mean=2.0, low=0.0, high=5.0, num_finite=4, num_bad=2, bad_kinds=1)
    """
    flags = 0
    for bucket in buckets:
        flags |= bucket.bad_kinds
    num_bad = sum(bucket.num_bad for bucket in buckets)
    finite = [bucket for bucket in buckets if bucket.num_finite]
    count = sum(bucket.num_finite for bucket in finite)
    if not count:
        return Bucket(None, None, None, 0, num_bad, flags)
    low = min(bucket.low for bucket in finite)
    high = max(bucket.high for bucket in finite)
    mean = math.fsum(bucket.mean * (bucket.num_finite / count) for bucket in finite)
    return Bucket(min(max(mean, low), high), low, high, count, num_bad, flags)


class Buckets(NamedTuple):
    """A block of level 1 or more: where its buckets lie, and for each column a list for each field of Bucket."""

    first: list[int]
    last: list[int]
    rows: list[int]
    times: list[int]
    columns: list[Fields]


def _head(buckets: Buckets) -> tuple[list[int], ...]:
    return buckets.first, buckets.last, buckets.rows, buckets.times


_HEAD = 4
_WIDTH = len(Bucket._fields)


def pack_rows(rows: Rows, kinds: str, *, is_final: bool) -> bytes:
    """Return rows as a blob; ``kinds`` has a letter for each column of values."""
    return pack(zip(INTEGER + INTEGER + kinds, rows, strict=True), is_final=is_final)


def unpack_rows(blob: bytes, num_rows: int, num_columns: int) -> Rows:
    """Return all columns of a level-0 blob."""
    return tuple(unpack(blob, num_rows, range(2 + num_columns)))


def pack_buckets(buckets: Buckets, kinds: str) -> bytes:
    """Return buckets as a blob."""
    columns: list[tuple[str, Any]] = [(INTEGER, values) for values in _head(buckets)]
    for kind, column in zip(kinds, buckets.columns, strict=True):
        columns += zip((kind, kind, kind, INTEGER, INTEGER, INTEGER), column, strict=True)
    return pack(columns)


def unpack_buckets(blob: bytes, num_buckets: int, columns: Iterable[int]) -> Buckets:
    """Return the wanted columns of a blob of level 1 or more."""
    places = [*range(_HEAD), *(_HEAD + _WIDTH * i + j for i in columns for j in range(_WIDTH))]
    parts: list[Any] = unpack(blob, num_buckets, places)
    first, last, rows, times = parts[:_HEAD]
    fields: list[Fields] = [tuple(parts[i : i + _WIDTH]) for i in range(_HEAD, len(parts), _WIDTH)]
    return Buckets(first, last, rows, times, fields)


def summarise_rows(rows: Rows) -> Buckets:
    """Return rows as buckets of FAN rows each."""
    steps, times = rows[0], rows[1]
    spans = _spans(len(steps))
    return Buckets(
        [steps[start] for start, _ in spans],
        [steps[end - 1] for _, end in spans],
        [end - start for start, end in spans],
        [times[end - 1] for _, end in spans],
        [_buckets_of(values, spans) for values in rows[2:]],
    )


def _buckets_of(values: list[Any], spans: Sequence[tuple[int, int]]) -> Fields:
    if values.count(values[0]) == len(values):  # most columns are: factors, weight decay, what is not known
        full, (start, end) = bucket_of(values[:FAN]), spans[-1]
        return _fields_of([*[full] * (len(spans) - 1), bucket_of(values[start:end])])
    return _fields_of([bucket_of(values[start:end]) for start, end in spans])


def _fields_of(buckets: Sequence[Bucket]) -> Fields:
    return tuple(map(list, zip(*buckets, strict=True)))


def _merged(fields: Fields, spans: Sequence[tuple[int, int]]) -> Fields:
    """Merge the buckets of each span. Tens of thousands are merged at once, and nearly all hold finite values only."""
    means, lows, highs, counts, bads, _ = fields
    merged = []
    for start, end in spans:
        weights = counts[start:end]
        if 0 in weights or any(bads[start:end]):
            merged.append(merge([Bucket(*one) for one in zip(*(field[start:end] for field in fields), strict=True)]))
            continue
        count, low, high = sum(weights), min(lows[start:end]), max(highs[start:end])
        mean = sum(map(mul, means[start:end], weights)) / count
        if not math.isfinite(mean):
            mean = math.fsum(value * (weight / count) for value, weight in zip(means[start:end], weights, strict=True))
        merged.append(Bucket(min(max(mean, low), high), low, high, count, 0, 0))
    return _fields_of(merged)


def summarise_buckets(buckets: Buckets) -> Buckets:
    """Return buckets as a FANth of them."""
    spans = _spans(len(buckets.first))
    return Buckets(
        [buckets.first[start] for start, _ in spans],
        [buckets.last[end - 1] for _, end in spans],
        [sum(buckets.rows[start:end]) for start, end in spans],
        [buckets.times[end - 1] for _, end in spans],
        [_merged(fields, spans) for fields in buckets.columns],
    )


def concatenate(blocks: Sequence[Buckets]) -> Buckets:
    """Return blocks of the same columns as one."""
    first, last, rows, times = (
        [value for part in parts for value in part] for parts in zip(*map(_head, blocks), strict=True)
    )
    columns = [
        tuple([value for part in parts for value in part] for parts in zip(*same, strict=True))
        for same in zip(*(block.columns for block in blocks), strict=True)
    ]
    return Buckets(first, last, rows, times, columns)


def _spans(length: int) -> list[tuple[int, int]]:
    return [(start, min(start + FAN, length)) for start in range(0, length, FAN)]


def coarsen(buckets: Buckets, level: int, wanted: int) -> Buckets:
    """Return the buckets of one level as those of a coarser one, or of the same."""
    for _ in range(level, wanted):
        buckets = summarise_buckets(buckets)
    return buckets


def points_of_rows(attempt: int, rows: Rows) -> Iterator[Point]:
    """Return the rows of one column as points."""
    for step, time, value in zip(*rows, strict=True):
        seconds = time / 1e6
        if value is None:
            yield Point(attempt, step, step, seconds, 1, None, None, None, 0)
        elif math.isfinite(value):
            yield Point(attempt, step, step, seconds, 1, value, value, value, 1)
        else:
            kinds = kinds_of(_flag_of(value))
            yield Point(attempt, step, step, seconds, 1, None, None, None, 0, 1, kinds)


def points_of_buckets(attempt: int, buckets: Buckets) -> Iterator[Point]:
    """Return the buckets of one column as points."""
    heads = zip(*_head(buckets), strict=True)
    for (first, last, rows, time), one in zip(heads, zip(*buckets.columns[0], strict=True), strict=True):
        mean, low, high, num_finite, num_bad, flags = one
        yield Point(attempt, first, last, time / 1e6, rows, mean, low, high, num_finite, num_bad, kinds_of(flags))


def last_steps(points: Sequence[Point]) -> list[int]:
    """Return the last step of each point; of one that reaches over the step at which a later attempt began, the last
    step before that.

    >>> point = Point(0, 1, 16, 0.0, 16, 1.0, 1.0, 1.0, 16)
    >>> last_steps([point, point._replace(attempt=1, first_step=9, last_step=24)])
    [8, 24]
    """
    follow = [point.first_step for point in points[1:]]
    cut = [
        min(point.last_step, first - 1) if first < point.last_step else point.last_step
        for point, first in zip(points, follow, strict=False)
    ]
    return [*cut, *(point.last_step for point in points[-1:])]


def thin_out(points: Sequence[Point], limit: int) -> list[Point]:
    """Return at most ``limit`` points: neighbours of one attempt are merged into shares of about as many rows."""
    if len(points) <= limit:
        return list(points)
    # Each attempt begins a point of its own while there are enough points for that.
    num_attempts = 1 + sum(a.attempt != b.attempt for a, b in pairwise(points))
    is_mixed = num_attempts > limit
    num_shares = limit if is_mixed else limit - num_attempts + 1
    total = sum(point.num_rows for point in points)
    groups: list[list[Point]] = []
    done, previous = 0, None
    for point in points:
        key = (None if is_mixed else point.attempt, done * num_shares // total)
        if key != previous:
            groups.append([])
            previous = key
        groups[-1].append(point)
        done += point.num_rows
    return [_merge_points(group) for group in groups]


def _merge_points(group: Sequence[Point]) -> Point:
    first, last = group[0], group[-1]
    whole = merge([_bucket_of_point(point) for point in group])
    return last._replace(
        first_step=first.first_step,
        num_rows=sum(point.num_rows for point in group),
        mean=whole.mean,
        minimum=whole.low,
        maximum=whole.high,
        num_finite=whole.num_finite,
        num_nonfinite=whole.num_bad,
        nonfinite=kinds_of(whole.bad_kinds),
    )


def _bucket_of_point(point: Point) -> Bucket:
    flags = sum(_NONFINITE[name] for name in point.nonfinite)
    return Bucket(point.mean, point.minimum, point.maximum, point.num_finite, point.num_nonfinite, flags)
