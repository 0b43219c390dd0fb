"""Columns of numbers come back from a blob as they went in."""

from __future__ import annotations

import math
import random
import struct
import sys
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.store._codec import FLOAT, INTEGER, SINGLE, pack, unpack


def bits(values: list[Any]) -> list[Any]:
    return [None if value is None else struct.pack("<d", value) for value in values]


floats = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True))
columns = st.lists(floats, min_size=1, max_size=300)


@given(columns, st.booleans())
def test_floats_come_back_bit_by_bit(values: list[float | None], is_final: bool) -> None:
    """NaN, infinities, -0.0 and a missing value are each what they were."""
    blob = pack([(FLOAT, values)], is_final=is_final)
    assert bits(unpack(blob, len(values), [0])[0]) == bits(values)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=300), st.booleans())
def test_integers_come_back(values: list[int], is_final: bool) -> None:
    """Integers of 64 bits come back, however far apart they are."""
    assert unpack(pack([(INTEGER, values)], is_final=is_final), len(values), [0]) == [values]


@pytest.mark.parametrize("stride", [1, 10, -3])
def test_counting_takes_sixteen_bytes(stride: int) -> None:
    """Step numbers that count up or down cost nothing a step."""
    values = list(range(500, 500 + 1000 * stride, stride))
    blob = pack([(INTEGER, values)])
    assert unpack(blob, 1000, [0]) == [values]
    assert len(blob) < 40


def test_a_column_that_never_changes_takes_eight_bytes() -> None:
    """Constant columns, NaN too, and columns without any value cost nothing a row."""
    for value in (1.0, math.nan, None):
        blob = pack([(FLOAT, [value] * 1000)])
        assert bits(unpack(blob, 1000, [0])[0]) == bits([value] * 1000)
        assert len(blob) < 40


def test_one_column_is_read_without_the_others() -> None:
    """The columns asked for come back in the order asked for."""
    blob = pack([(FLOAT, [1.0, 2.0]), (INTEGER, [3, 5]), (FLOAT, [None, 4.0])])
    assert unpack(blob, 2, [2, 0]) == [[None, 4.0], [1.0, 2.0]]


def test_single_floats_keep_seven_digits() -> None:
    """Durations are kept to seven digits; one beyond the range of four bytes does not stop the rest."""
    source = random.Random(0)
    values = [source.random() for _ in range(300)]
    (found,) = unpack(pack([(SINGLE, values)]), 300, [0])
    assert all(math.isclose(a, b, rel_tol=1e-7) for a, b in zip(values, found, strict=True))
    assert unpack(pack([(SINGLE, [1e300, 1.0])]), 2, [0]) == [[math.inf, 1.0]]


@given(st.binary(max_size=400), st.integers(1, 64))
def test_any_bytes_are_refused_or_read(blob: bytes, num_rows: int) -> None:
    """A blob that is not one raises ValueError and nothing else."""
    try:
        found = unpack(blob, num_rows, [0])
    except ValueError:
        return
    assert len(found[0]) == num_rows


@given(st.data())
def test_a_blob_with_a_changed_byte_is_refused_or_read(data: st.DataObject) -> None:
    """A damaged blob raises ValueError and nothing else."""
    source = random.Random(1)
    blob = bytearray(
        pack(
            [
                (INTEGER, list(range(300))),
                (INTEGER, [i * i for i in range(300)]),
                (FLOAT, [None if i % 7 == 0 else source.random() for i in range(300)]),
            ]
        )
    )
    blob[data.draw(st.integers(0, len(blob) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found = unpack(bytes(blob), 300, [0, 1, 2])
    except ValueError:
        return
    assert [len(column) for column in found] == [300] * 3


def test_a_bomb_does_not_fill_the_memory() -> None:
    """A column that says to decompress to gigabytes is refused after as many bytes as its rows take."""
    bomb = zlib.compress(bytes(2**26))
    for method in (4, 5):
        body = bomb if method == 4 else bytes(8) + bomb
        blob = struct.pack("<IcBII", 1, b"d" if method == 4 else b"q", method, 0, len(body)) + body
        with pytest.raises(ValueError, match="bytes where"):
            unpack(blob, 10, [0])
    with pytest.raises(ValueError, match="a block of 1000000000 rows"):
        unpack(blob, 10**9, [0])
    assert sys.getsizeof(blob) < 2**20
