"""Buckets and points have the figures of the values that they stand for, at every level."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.store._curve import (
    FAN,
    Point,
    bucket_of,
    coarsen,
    concatenate,
    kinds_of,
    merge,
    pack_buckets,
    points_of_buckets,
    points_of_rows,
    summarise_rows,
    thin_out,
    unpack_buckets,
)

values_ = st.one_of(
    st.none(),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([1.0, 1e308, -1e308, math.nan, math.inf]),
)
columns = st.lists(values_, min_size=1, max_size=600)


def rows_of(values: list[Any], first: int = 1) -> Any:
    steps = list(range(first, first + len(values)))
    return steps, [step * 1000 for step in steps], values


def check(point: Point, values: list[Any]) -> None:
    """Compare a point with the values that it stands for."""
    given_ = [value for value in values if value is not None]
    finite = [value for value in given_ if math.isfinite(value)]
    assert point.num_rows == len(values)
    assert (point.num_finite, point.num_nonfinite) == (len(finite), len(given_) - len(finite))
    assert set(point.nonfinite) == {
        "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf" for value in given_ if not math.isfinite(value)
    }
    assert (point.minimum, point.maximum) == (min(finite, default=None), max(finite, default=None))
    if not finite:
        assert point.mean is None
        return
    assert point.minimum <= point.mean <= point.maximum  # type: ignore[operator]
    scale = max(map(abs, finite))
    mean = math.fsum(value / len(finite) for value in finite)
    assert math.isclose(point.mean, mean, rel_tol=1e-9, abs_tol=1e-9 * scale)  # type: ignore[arg-type]


@given(columns, st.integers(1, 4))
def test_buckets_of_every_level_have_the_figures_of_their_values(values: list[Any], level: int) -> None:
    """Minimum, mean, maximum and counts are those of the values, however often they were merged and packed."""
    buckets = coarsen(summarise_rows(rows_of(values)), 1, level)
    packed = unpack_buckets(pack_buckets(buckets, "d"), len(buckets.first), [0])
    points = list(points_of_buckets(0, packed))
    assert points[0].first_step == 1
    assert points[-1].last_step == len(values)
    for number, point in enumerate(points):
        start = number * FAN**level
        check(point, values[start : start + FAN**level])


@given(columns, st.integers(1, 40))
def test_thinned_points_have_the_figures_of_their_values(values: list[Any], limit: int) -> None:
    """A curve in fewer points stands for the same values."""
    points = thin_out(list(points_of_rows(0, rows_of(values))), limit)
    assert len(points) <= limit
    start = 0
    for point in points:
        check(point, values[start : start + point.num_rows])
        start += point.num_rows
    assert start == len(values)


@given(columns, columns)
def test_blocks_that_are_joined_are_merged_as_one(first: list[Any], second: list[Any]) -> None:
    """Where one block ends and the next begins makes no difference to the whole."""
    blocks = [summarise_rows(rows_of(first)), summarise_rows(rows_of(second, len(first) + 1))]
    (point,) = thin_out(list(points_of_buckets(0, concatenate(blocks))), 1)
    check(point, first + second)


def test_a_mean_never_leaves_its_minimum_and_maximum() -> None:
    """Rounding does not put the mean of equal values beside them."""
    for value in (0.1, 1 / 3, 1e-320, 1.7e308):
        whole = merge([bucket_of([value] * 7), bucket_of([value] * 3)])
        assert (whole.low, whole.mean, whole.high) == (value, value, value)


@pytest.mark.parametrize(("flags", "names"), [(0, ()), (3, ("NaN", "+Inf")), (7, ("NaN", "+Inf", "-Inf"))])
def test_what_is_not_finite_is_named(flags: int, names: tuple[str, ...]) -> None:
    """The names are those of the HTTP API."""
    assert kinds_of(flags) == names


@given(st.lists(st.integers(0, 3), min_size=1, max_size=200), st.integers(1, 50))
def test_points_are_never_more_than_asked_for(attempts: list[int], limit: int) -> None:
    """However the attempts lie, there are at most as many points, and each row is in one of them."""
    attempts.sort()
    points = [Point(attempt, i, i, float(i), 1, 1.0, 1.0, 1.0, 1) for i, attempt in enumerate(attempts)]
    found = thin_out(points, limit)
    assert len(found) <= limit
    assert sum(point.num_rows for point in found) == len(points)
    if limit >= len(set(attempts)):
        for point in found:
            assert len({points[i].attempt for i in range(point.first_step, point.last_step + 1)}) == 1
