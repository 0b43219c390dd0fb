"""The blocks of a store: append rows, seal them, summarise them at coarser levels, give up the oldest.

Level 0 holds rows, level k buckets of 16**k rows. Each commit appends one small block to every curve that has new
rows. Small blocks are merged until they are full; a full one is sealed. When 16 sealed blocks of one level have come
together, one block of the next level is made of them. When the file is full, blocks that the next level covers are
deleted, the oldest first, where the level has most over its share. All of it happens within the writer's transaction,
and all that is known of the blocks can be read back from them.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, pairwise
from typing import NamedTuple

from monitor._errors import StoreError
from monitor.store._codec import Number
from monitor.store._columns import Row, kinds_of_columns
from monitor.store._curve import (
    FAN,
    Rows,
    concatenate,
    pack_buckets,
    pack_rows,
    summarise_buckets,
    summarise_rows,
    unpack_buckets,
    unpack_rows,
)

BLOCK_ROWS = 1024
_BLOCK_VALUES = 2**16
"""What a full block holds of a curve with many columns: fewer rows."""
_SMALL_BLOCKS = 32
"""Small blocks of one curve that are merged, full or not."""
_ROW_BYTES = 120
"""What a block takes beside its data."""
_COLUMNS = "id, first_row, num_rows, num_points, attempt, layout, LENGTH(data), data"


@dataclass
class Chunk:
    """Rows of one curve that one attempt made: each a step, a time and the values of ``columns``."""

    attempt: int
    columns: tuple[str, ...]
    rows: list[Row] = field(default_factory=list)


class _Block(NamedTuple):
    """A row of the table of blocks, as _COLUMNS lists it."""

    id: int
    first_row: int
    num_rows: int
    num_points: int
    attempt: int
    layout: int
    size: int
    data: bytes | None

    @property
    def end(self) -> int:
        """The row after the last."""
        return self.first_row + self.num_rows


@dataclass
class _Level:
    """What is known of the blocks of one level of a curve."""

    num_bytes: int = 0
    first_row: int = 0
    sealed_end: int = 0  # rows before this one are in sealed blocks
    num_blocks: int = 0
    num_uncovered: int = 0  # sealed blocks that the next level does not cover yet


@dataclass
class _Curve:
    id: int
    next_row: int = 0
    num_small: int = 0
    levels: list[_Level] = field(default_factory=lambda: [_Level()])


class Blocks:
    """All blocks of a store, for its writer; made anew after every failure."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._curves: dict[tuple[str, str], _Curve] = {}
        self._layouts: dict[tuple[str, ...], int] = {}
        self._columns: dict[int, tuple[str, ...]] = {}
        self._num_bytes = 0
        self._load()

    def _load(self) -> None:
        for number, columns in self._connection.execute("SELECT id, columns FROM layout"):
            self._know_layout(number, tuple(columns.split("\n")))
        by_id = {}
        for number, kind, name in self._connection.execute("SELECT id, kind, name FROM curve"):
            by_id[number] = self._curves[kind, name] = _Curve(number)
        found = self._connection.execute(
            "SELECT curve, level, COUNT(*), SUM(LENGTH(data)), MIN(first_row), MAX(first_row + num_rows), "
            "MAX(CASE WHEN is_sealed THEN first_row + num_rows ELSE 0 END), SUM(NOT is_sealed) "
            "FROM block GROUP BY curve, level ORDER BY curve, level"
        )
        for number, level, count, num_bytes, first_row, end, sealed_end, num_small in found.fetchall():
            curve = by_id[number]
            known = self._level(curve, level)
            known.num_blocks, known.num_bytes = count, num_bytes + count * _ROW_BYTES
            self._num_bytes += known.num_bytes
            known.first_row, known.sealed_end = first_row, max(sealed_end, first_row)
            curve.num_small += num_small
            curve.next_row = max(curve.next_row, end)
        for curve in by_id.values():
            for finer, coarser in reversed(list(pairwise(curve.levels))):  # the finer one may have given up all it had
                finer.sealed_end = max(finer.sealed_end, coarser.sealed_end)
            for level, known in enumerate(curve.levels):
                known.num_uncovered = len(self._uncovered(curve, level, with_data=False))

    def _know_layout(self, number: int, columns: tuple[str, ...]) -> None:
        self._layouts[columns] = number
        self._columns[number] = columns

    def _level(self, curve: _Curve, level: int) -> _Level:
        while len(curve.levels) <= level:
            curve.levels.append(_Level(first_row=0))
        return curve.levels[level]

    def last_steps(self, attempt: int) -> dict[tuple[str, str], int]:
        """Return the last step of each curve in an attempt."""
        found = self._connection.execute(
            "SELECT kind, name, MAX(last_step) FROM block JOIN curve ON curve.id = block.curve "
            "WHERE attempt = ? GROUP BY block.curve",
            (attempt,),
        )
        return {(kind, name): step for kind, name, step in found}

    # ----------------------------------------------------------------------------------------------- append

    def append(self, key: tuple[str, str], attempt: int, chunk: Chunk) -> int:
        """Append rows to a curve; return how many of their values could not be kept, being no numbers."""
        curve = self._curve(key)
        layout = self._layout(chunk.columns)
        kinds = kinds_of_columns(chunk.columns)
        num_unfit = 0
        full = _full_rows(chunk.columns)
        for start in range(0, len(chunk.rows), full):
            rows, unfit = _to_columns(chunk.rows[start : start + full])
            num_unfit += unfit
            data = pack_rows(rows, kinds, is_final=False)
            self._insert(curve, 0, attempt, layout, rows[0], len(rows[0]), len(rows[0]), data, is_sealed=False)
            curve.num_small += 1
            if curve.num_small >= _SMALL_BLOCKS or curve.next_row - curve.levels[0].sealed_end >= full:
                self._consolidate(curve)
        return num_unfit

    def append_by_time(self, key: tuple[str, str], chunk: Chunk) -> int:
        """Append rows that belong to no step, and so lack one: their place in the curve stands for it."""
        start = self._curve(key).next_row
        rows: list[Row] = [(start + place, *row) for place, row in enumerate(chunk.rows)]
        return self.append(key, 0, Chunk(0, chunk.columns, rows))

    def _curve(self, key: tuple[str, str]) -> _Curve:
        if key not in self._curves:
            kind, name = (text.encode("utf-8", "backslashreplace").decode() for text in key)
            self._connection.execute("INSERT OR IGNORE INTO curve(kind, name) VALUES (?, ?)", (kind, name))
            found = self._connection.execute("SELECT id FROM curve WHERE kind = ? AND name = ?", (kind, name))
            (number,) = found.fetchone()
            self._curves[key] = _Curve(number)
        return self._curves[key]

    def _layout(self, columns: tuple[str, ...]) -> int:
        if columns not in self._layouts:
            cursor = self._connection.execute("INSERT INTO layout(columns) VALUES (?)", ("\n".join(columns),))
            assert cursor.lastrowid is not None
            self._know_layout(cursor.lastrowid, columns)
        return self._layouts[columns]

    def _insert(
        self,
        curve: _Curve,
        level: int,
        attempt: int,
        layout: int,
        steps: Sequence[Number],
        num_rows: int,
        num_points: int,
        data: bytes,
        *,
        is_sealed: bool,
        first_row: int | None = None,
        last_step: Number = None,
    ) -> None:
        start = curve.next_row if first_row is None else first_row
        end_step = steps[-1] if last_step is None else last_step
        self._connection.execute(
            "INSERT INTO block(curve, level, first_row, num_rows, num_points, first_step, last_step, attempt, layout, "
            "is_sealed, data) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (curve.id, level, start, num_rows, num_points, steps[0], end_step, attempt, layout, is_sealed, data),
        )
        known = self._level(curve, level)
        if not known.num_blocks:
            known.first_row = start
            known.sealed_end = max(known.sealed_end, start)
        known.num_blocks += 1
        known.num_bytes += len(data) + _ROW_BYTES
        self._num_bytes += len(data) + _ROW_BYTES
        curve.next_row = max(curve.next_row, start + num_rows)
        if is_sealed:
            known.sealed_end = start + num_rows
            known.num_uncovered += 1

    def _select(self, curve: _Curve, level: int, start: int, *, sealed_only: bool, with_data: bool) -> list[_Block]:
        columns = _COLUMNS if with_data else _COLUMNS.removesuffix("data") + "NULL"
        sealed = "AND is_sealed" if sealed_only else ""
        found = self._connection.execute(
            f"SELECT {columns} FROM block WHERE curve = ? AND level = ? AND first_row >= ? {sealed} ORDER BY first_row",
            (curve.id, level, start),
        )
        return [_Block(*row) for row in found]

    def _delete(self, curve: _Curve, level: int, blocks: Iterable[_Block]) -> None:
        known = curve.levels[level]
        for block in blocks:
            self._connection.execute("DELETE FROM block WHERE id = ?", (block.id,))
            known.num_blocks -= 1
            known.num_bytes -= block.size + _ROW_BYTES
            self._num_bytes -= block.size + _ROW_BYTES

    # ------------------------------------------------------------------------------------------- consolidate

    def _consolidate(self, curve: _Curve, *, seals_all: bool = False) -> None:
        """Merge the small blocks of a curve and seal those that are full; ``seals_all``: the last one too."""
        small = self._select(curve, 0, curve.levels[0].sealed_end, sealed_only=False, with_data=True)
        self._delete(curve, 0, small)
        runs = [list(run) for _, run in groupby(small, lambda block: (block.attempt, block.layout))]
        curve.num_small = 0
        for run in runs:
            columns = self._columns[run[0].layout]
            parts = [self._decoded(unpack_rows, block, len(columns)) for block in run]
            rows: Rows = tuple([value for part in parts for value in part[i]] for i in range(2 + len(columns)))
            full = _full_rows(columns)
            for start in range(0, len(rows[0]), full):
                piece: Rows = tuple(values[start : start + full] for values in rows)
                count = len(piece[0])
                # An attempt that has ended, or columns that have changed: nothing more will come to this block.
                is_sealed = count == full or run is not runs[-1] or seals_all
                data = pack_rows(piece, kinds_of_columns(columns), is_final=True)
                first_row = run[0].first_row + start
                self._insert(
                    curve, 0, run[0].attempt, run[0].layout, piece[0], count, count, data,
                    is_sealed=is_sealed, first_row=first_row,
                )  # fmt: skip
                curve.num_small += not is_sealed
        if curve.levels[0].num_uncovered >= FAN:
            self._summarise(curve, 0)

    def _decoded(self, unpack_: object, block: _Block, *arguments: object) -> Rows:
        try:
            return unpack_(block.data, block.num_points, *arguments)  # type: ignore[operator,no-any-return]
        except ValueError as error:
            raise StoreError(f"block {block.id} is damaged: {error}") from error

    # --------------------------------------------------------------------------------------------- summarise

    def _uncovered(self, curve: _Curve, level: int, *, with_data: bool) -> list[_Block]:
        above = curve.levels[level + 1] if level + 1 < len(curve.levels) else _Level()
        return self._select(curve, level, above.sealed_end, sealed_only=True, with_data=with_data)

    def _summarise(self, curve: _Curve, level: int) -> None:
        """Make blocks of the next level of all sealed ones that have none yet."""
        blocks = self._uncovered(curve, level, with_data=True)
        self._level(curve, level + 1)
        for _, same in groupby(blocks, lambda block: (block.attempt, block.layout)):
            run = list(same)
            for start in range(0, len(run), FAN):
                self._summarise_run(curve, level, run[start : start + FAN])
        curve.levels[level].num_uncovered = 0
        if curve.levels[level + 1].num_uncovered >= FAN:
            self._summarise(curve, level + 1)

    def _summarise_run(self, curve: _Curve, level: int, run: Sequence[_Block]) -> None:
        columns = self._columns[run[0].layout]
        width = len(columns)
        if level == 0:
            parts = [self._decoded(unpack_rows, block, width) for block in run]
            whole: Rows = tuple([value for part in parts for value in part[i]] for i in range(2 + width))
            buckets = summarise_rows(whole)
        else:
            decoded = [self._decoded(unpack_buckets, block, range(width)) for block in run]
            buckets = summarise_buckets(concatenate(decoded))  # type: ignore[arg-type]
        self._insert(
            curve, level + 1, run[0].attempt, run[0].layout, buckets.first, run[-1].end - run[0].first_row,
            len(buckets.first), pack_buckets(buckets, kinds_of_columns(columns)),
            is_sealed=True, first_row=run[0].first_row, last_step=buckets.last[-1],
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------------ shrink

    def num_used_bytes(self) -> int:
        """Return what the pages in use take."""
        (pages,) = self._connection.execute("PRAGMA page_count").fetchone()
        (free,) = self._connection.execute("PRAGMA freelist_count").fetchone()
        (size,) = self._connection.execute("PRAGMA page_size").fetchone()
        return int((pages - free) * size)

    def shrink(self, limit: int, at_most: int) -> bool:
        """Give up the finest and oldest blocks until no more than ``limit`` bytes are in use, or nothing can go, or
        that has been done ``at_most`` times; return whether there is more to do."""
        while (excess := self.num_used_bytes() - limit) > 0:
            if at_most <= 0:
                return True
            num_done = self._give_up_until(self._num_bytes - excess, at_most)
            if not num_done:
                return False
            at_most -= num_done
        return False

    def _give_up_until(self, goal: int, at_most: int) -> int:
        """Delete blocks until ``goal`` bytes are left or it is time to look again; return how often.

        The level that is furthest over its share goes first (half of the file is for rows, a quarter for the buckets of
        level 1, and so on), and in it the curves that have most of it.
        """
        totals: dict[int, int] = {}
        for curve in self._curves.values():
            for level, known in enumerate(curve.levels):
                totals[level] = totals.get(level, 0) + known.num_bytes
        for level in sorted(totals, key=lambda one: totals[one] * 2.0**one, reverse=True):
            curves = sorted(self._curves.values(), key=partial(_bytes_at, level=level), reverse=True)
            most, num_done = _bytes_at(curves[0], level), 0
            for curve in curves:
                has = _bytes_at(curve, level)
                is_enough = self._num_bytes <= goal or 2 * has < most or num_done >= at_most
                if not has or (num_done and is_enough):
                    break
                num_done += self._give_up(curve, level)
            if num_done:
                return num_done
        return 0

    def _give_up(self, curve: _Curve, level: int) -> bool:
        known = curve.levels[level]
        if level == 0 and curve.num_small and known.num_blocks == curve.num_small:
            self._consolidate(curve, seals_all=True)
        above = self._level(curve, level + 1)
        if above.sealed_end <= known.first_row:
            if not self._can_summarise(curve, level):
                return False
            self._summarise(curve, level)
        # Of the next level, as a rule; where that has been given up as well, of one above it.
        sql = "SELECT MIN(first_row + num_rows) FROM block WHERE curve = ? AND level > ? AND first_row + num_rows > ?"
        (end,) = self._connection.execute(sql, (curve.id, level, known.first_row)).fetchone()
        if end is None:
            return False
        blocks = self._select(curve, level, known.first_row, sealed_only=True, with_data=False)
        self._delete(curve, level, [block for block in blocks if block.end <= end])
        known.first_row = end
        return True

    def _can_summarise(self, curve: _Curve, level: int) -> bool:
        """Whether the next level would be smaller: one bucket cannot be made less."""
        blocks = self._uncovered(curve, level, with_data=False)
        return sum(block.num_points for block in blocks) > len(blocks)


def _full_rows(columns: Sequence[str]) -> int:
    return max(1, min(BLOCK_ROWS, _BLOCK_VALUES // len(columns)))


def _bytes_at(curve: _Curve, level: int) -> int:
    return curve.levels[level].num_bytes if level < len(curve.levels) else 0


def _to_columns(rows: Sequence[Row]) -> tuple[Rows, int]:
    """Turn rows into columns of numbers, times in microseconds; count the values that are no numbers."""
    steps, times, *values = (list(column) for column in zip(*rows, strict=True))
    num_unfit = 0
    for i, column in enumerate(values):
        if not set(map(type, column)) <= _FLOAT_OR_NONE:
            values[i] = [_to_float(value) for value in column]
            num_unfit += sum(a is not None and b is None for a, b in zip(column, values[i], strict=True))
    return (steps, list(_to_microseconds(times)), *values), num_unfit


_FLOAT_OR_NONE = {float, type(None)}


def _to_float(value: object) -> float | None:
    if value is None:
        return None
    with suppress(TypeError, ValueError, OverflowError):
        return float(value)  # type: ignore[arg-type]
    return None


def _to_microseconds(times: Iterable[Number]) -> Iterator[int]:
    last = 0
    for value in times:
        if value is not None and math.isfinite(value) and abs(value) < 1e12:
            last = round(value * 1e6)
        yield last
