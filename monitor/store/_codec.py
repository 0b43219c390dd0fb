"""Pack columns of numbers into one blob, from which single columns can be read without the others.

A blob is a directory and the columns behind it. A column that never changes takes eight bytes, one that counts up
sixteen; any other is zlib over its bytes, first all lowest bytes, then all second ones, and so on: neighbours share
exponent and sign, and numbers that were float32 end in zeros. NaN and infinities are kept bit by bit; a missing value
is a bit of its own, as NaN is a value.
"""

from __future__ import annotations

import struct
import sys
import zlib
from array import array
from collections.abc import Iterable, Sequence
from operator import sub
from typing import Any

Number = float | None
FLOAT, SINGLE, INTEGER = "d", "f", "q"
"""Eight-byte floats, four-byte floats (seven digits), and integers from -2**63 to 2**63 - 1."""
MAX_ROWS = 2**16
_ABSENT, _CONSTANT, _RANGE, _PLAIN, _ZIPPED, _DELTAS = range(6)
_COUNT = struct.Struct("<I")
_ENTRY = struct.Struct("<cBII")
"""Kind, method, bytes of the presence flags (0: nothing is missing), bytes of the numbers."""
_RANGE_BODY = struct.Struct("<qq")
_FIRST = struct.Struct("<q")
_LEVEL = 1
_WORTH_BYTES = 128
"""Fewer bytes are not compressed: a zlib stream has a dozen bytes and microseconds of its own."""


def pack(columns: Iterable[tuple[str, Sequence[Number]]], *, is_final: bool = True) -> bytes:
    """Return columns, each a kind and its values, as one blob; what is not ``is_final`` is not compressed.

    >>> blob = pack([(INTEGER, [7, 8, 9]), (FLOAT, [0.5, None, 0.25])])
    >>> unpack(blob, 3, [1, 0])
    [[0.5, None, 0.25], [7, 8, 9]]

    Raises:
        OverflowError: for an integer column that does not fit 64 bits.
        TypeError: for what is not a number.
    """
    entries, bodies = [], []
    for kind, values in columns:
        method, flags, body = _pack_column(kind, values, is_final)
        entries.append(_ENTRY.pack(kind.encode(), method, len(flags), len(body)))
        bodies += [flags, body]
    return b"".join([_COUNT.pack(len(entries)), *entries, *bodies])


def _pack_column(kind: str, values: Sequence[Number], is_final: bool) -> tuple[int, bytes, bytes]:
    flags = b""
    if None in values:
        flags = bytes(value is not None for value in values)
        values = [value for value in values if value is not None]
        if not values:
            return _ABSENT, b"", b""
        flags = zlib.compress(flags, _LEVEL)
    numbers: array[Any] = array(kind, values)
    plain = _to_bytes(numbers)
    if plain == plain[: numbers.itemsize] * len(numbers):
        return _CONSTANT, flags, plain[: numbers.itemsize]
    if kind == INTEGER and (body := _pack_range(numbers)):
        return _RANGE, flags, body
    if not is_final or len(plain) < _WORTH_BYTES:
        return _PLAIN, flags, plain
    if kind == INTEGER and (body := _pack_deltas(numbers)):
        return _DELTAS, flags, body
    body = zlib.compress(_shuffle(plain, numbers.itemsize), _LEVEL)
    return (_ZIPPED, flags, body) if len(body) < len(plain) else (_PLAIN, flags, plain)


def _pack_range(numbers: array[Any]) -> bytes:
    first, stride = numbers[0], numbers[1] - numbers[0]
    if not stride or abs(stride) >= 2**62 or numbers[-1] != first + stride * (len(numbers) - 1):
        return b""
    is_range = numbers == array(INTEGER, range(first, numbers[-1] + stride, stride)[: len(numbers)])
    return _RANGE_BODY.pack(first, stride) if is_range else b""


def _pack_deltas(numbers: array[Any]) -> bytes:
    try:
        deltas = array(INTEGER, map(sub, numbers[1:], numbers))
    except OverflowError:
        return b""
    return _FIRST.pack(numbers[0]) + zlib.compress(_shuffle(_to_bytes(deltas), 8), _LEVEL)


def unpack(blob: bytes, num_rows: int, wanted: Iterable[int]) -> list[list[Number]]:
    """Return the wanted columns of a blob, by their place in it.

    Raises:
        ValueError: for a blob that :func:`pack` did not make of ``num_rows`` rows. Memory is bounded by ``num_rows``,
            whatever the blob says of itself.
    """
    if not 0 < num_rows <= MAX_ROWS:
        raise ValueError(f"a block of {num_rows} rows")
    try:
        (num_columns,) = _COUNT.unpack_from(blob)
        place = _COUNT.size + num_columns * _ENTRY.size
        if place > len(blob):
            raise ValueError("the directory is cut off")
        entries = list(_ENTRY.iter_unpack(blob[_COUNT.size : place]))
        starts = [place]
        for _, _, num_flags, num_bytes in entries:
            starts.append(starts[-1] + num_flags + num_bytes)
        return [_unpack_column(blob, starts[i], entries[i], num_rows) for i in wanted]
    except (struct.error, zlib.error, IndexError, OverflowError, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from error


def _unpack_column(blob: bytes, start: int, entry: tuple[bytes, int, int, int], num_rows: int) -> list[Number]:
    kind, method, num_flags, num_bytes = entry[0].decode(), *entry[1:]
    if method == _ABSENT:
        return [None] * num_rows
    if kind not in (FLOAT, SINGLE, INTEGER):
        raise ValueError(f"a column of kind {kind!r}")
    flags = _inflate(blob[start : start + num_flags], num_rows) if num_flags else b""
    num_values = num_rows - flags.count(0) if flags else num_rows
    body = blob[start + num_flags : start + num_flags + num_bytes]
    values = _unpack_numbers(kind, method, body, num_values)
    if not flags:
        return values
    remaining = iter(values)
    return [next(remaining) if flag else None for flag in flags]


def _unpack_numbers(kind: str, method: int, body: bytes, count: int) -> list[Number]:
    numbers: array[Any] = array(kind)
    size = numbers.itemsize
    if method == _RANGE:
        first, stride = _RANGE_BODY.unpack(body)
        return list(range(first, first + stride * count, stride))
    if method == _CONSTANT:
        body *= count
    elif method == _ZIPPED:
        body = _unshuffle(_inflate(body, count * size), size)
    elif method == _DELTAS:
        (total,) = _FIRST.unpack(body[:8])
        deltas = _from_bytes(kind, _unshuffle(_inflate(body[8:], (count - 1) * 8), 8))
        return [total, *(total := total + delta for delta in deltas)]
    elif method != _PLAIN:
        raise ValueError(f"a column packed by method {method}")
    if len(body) != count * size:
        raise ValueError(f"{len(body)} bytes for {count} numbers")
    return _from_bytes(kind, body).tolist()


def _inflate(body: bytes, size: int) -> bytes:
    """Decompress what must come to ``size`` bytes, and never more."""
    stream = zlib.decompressobj()
    plain = stream.decompress(body, size + 1)
    if len(plain) != size:
        raise ValueError(f"{len(plain)} bytes where {size} belong")
    return plain


def _shuffle(plain: bytes, size: int) -> bytes:
    return b"".join(plain[i::size] for i in range(size))


def _unshuffle(shuffled: bytes, size: int) -> bytes:
    plain, count = bytearray(len(shuffled)), len(shuffled) // size
    for i in range(size):
        plain[i::size] = shuffled[i * count : (i + 1) * count]
    return bytes(plain)


def _to_bytes(numbers: array[Any]) -> bytes:
    if sys.byteorder == "big":
        numbers = numbers[:]
        numbers.byteswap()
    return numbers.tobytes()


def _from_bytes(kind: str, body: bytes) -> array[Any]:
    numbers: array[Any] = array(kind)
    numbers.frombytes(body)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
