"""The blocks of a store: append rows, seal them, summarise them at coarser levels, give up the oldest.

Level 0 holds rows, level k buckets of 16**k rows. Each commit appends one small block to every curve that has new
rows. Small blocks are merged until they are full; a full one is sealed. When 16 sealed blocks of one level have come
together, one block of the next level is made of them. When the file is full, blocks that the next level covers are
deleted, the oldest first, where the level has most over its share. All of it happens within the writer's transaction,
and all that is known of the blocks can be read back from them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from functools import partial
from itertools import groupby

from monitor._errors import StoreError
from monitor.store._block_table import Block, BlockTable, Chunk, Curve
from monitor.store._columns import Row, kinds_of_columns, to_columns
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


class Blocks:
    """All blocks of a store, for its writer; made anew after every failure."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._table = BlockTable(connection)

    def last_steps(self, attempt: int) -> dict[tuple[str, str], int]:
        """Return the last step of each curve in an attempt."""
        return self._table.last_steps(attempt)

    # ----------------------------------------------------------------------------------------------- append

    def append(self, key: tuple[str, str], attempt: int, chunk: Chunk) -> int:
        """Append rows to a curve; return how many of their values could not be kept, being no numbers."""
        curve = self._table.curve(key)
        layout = self._table.layout(chunk.columns)
        kinds = kinds_of_columns(chunk.columns)
        num_unfit = 0
        full = _full_rows(chunk.columns)
        for start in range(0, len(chunk.rows), full):
            rows, unfit = to_columns(chunk.rows[start : start + full])
            num_unfit += unfit
            data = pack_rows(rows, kinds, is_final=False)
            self._table.insert(curve, 0, attempt, layout, rows[0], len(rows[0]), len(rows[0]), data, is_sealed=False)
            curve.num_small += 1
            if curve.num_small >= _SMALL_BLOCKS or curve.next_row - curve.levels[0].sealed_end >= full:
                self._consolidate(curve)
        return num_unfit

    def append_by_time(self, key: tuple[str, str], chunk: Chunk) -> int:
        """Append rows that belong to no step, and so lack one: their place in the curve stands for it."""
        start = self._table.curve(key).next_row
        rows: list[Row] = [(start + place, *row) for place, row in enumerate(chunk.rows)]
        return self.append(key, 0, Chunk(0, chunk.columns, rows))

    # ------------------------------------------------------------------------------------------- consolidate

    def _consolidate(self, curve: Curve, *, seals_all: bool = False) -> None:
        """Merge the small blocks of a curve and seal those that are full; ``seals_all``: the last one too."""
        small = self._table.select(curve, 0, curve.levels[0].sealed_end, sealed_only=False, with_data=True)
        self._table.delete(curve, 0, small)
        runs = [list(run) for _, run in groupby(small, lambda block: (block.attempt, block.layout))]
        curve.num_small = 0
        for run in runs:
            columns = self._table.columns[run[0].layout]
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
                self._table.insert(
                    curve, 0, run[0].attempt, run[0].layout, piece[0], count, count, data,
                    is_sealed=is_sealed, first_row=first_row,
                )  # fmt: skip
                curve.num_small += not is_sealed
        if curve.levels[0].num_uncovered >= FAN:
            self._summarise(curve, 0)

    def _decoded(self, unpack_: object, block: Block, *arguments: object) -> Rows:
        try:
            return unpack_(block.data, block.num_points, *arguments)  # type: ignore[operator,no-any-return]
        except ValueError as error:
            raise StoreError(f"block {block.id} is damaged: {error}") from error

    # --------------------------------------------------------------------------------------------- summarise

    def _summarise(self, curve: Curve, level: int) -> None:
        """Make blocks of the next level of all sealed ones that have none yet."""
        blocks = self._table.uncovered(curve, level, with_data=True)
        self._table.level(curve, level + 1)
        for _, same in groupby(blocks, lambda block: (block.attempt, block.layout)):
            run = list(same)
            for start in range(0, len(run), FAN):
                self._summarise_run(curve, level, run[start : start + FAN])
        curve.levels[level].num_uncovered = 0
        if curve.levels[level + 1].num_uncovered >= FAN:
            self._summarise(curve, level + 1)

    def _summarise_run(self, curve: Curve, level: int, run: Sequence[Block]) -> None:
        columns = self._table.columns[run[0].layout]
        width = len(columns)
        if level == 0:
            parts = [self._decoded(unpack_rows, block, width) for block in run]
            whole: Rows = tuple([value for part in parts for value in part[i]] for i in range(2 + width))
            buckets = summarise_rows(whole)
        else:
            decoded = [self._decoded(unpack_buckets, block, range(width)) for block in run]
            buckets = summarise_buckets(concatenate(decoded))  # type: ignore[arg-type]
        self._table.insert(
            curve, level + 1, run[0].attempt, run[0].layout, buckets.first, run[-1].end - run[0].first_row,
            len(buckets.first), pack_buckets(buckets, kinds_of_columns(columns)),
            is_sealed=True, first_row=run[0].first_row, last_step=buckets.last[-1],
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------------ shrink

    def shrink(self, limit: int, at_most: int) -> bool:
        """Give up the finest and oldest blocks until no more than ``limit`` bytes are in use, or nothing can go, or
        that has been done ``at_most`` times; return whether there is more to do."""
        while (excess := self._table.num_used_bytes() - limit) > 0:
            if at_most <= 0:
                return True
            num_done = self._give_up_until(self._table.num_bytes - excess, at_most)
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
        for curve in self._table.curves.values():
            for level, known in enumerate(curve.levels):
                totals[level] = totals.get(level, 0) + known.num_bytes
        for level in sorted(totals, key=lambda one: totals[one] * 2.0**one, reverse=True):
            curves = sorted(self._table.curves.values(), key=partial(_bytes_at, level=level), reverse=True)
            most, num_done = _bytes_at(curves[0], level), 0
            for curve in curves:
                has = _bytes_at(curve, level)
                is_enough = self._table.num_bytes <= goal or 2 * has < most or num_done >= at_most
                if not has or (num_done and is_enough):
                    break
                num_done += self._give_up(curve, level)
            if num_done:
                return num_done
        return 0

    def _give_up(self, curve: Curve, level: int) -> bool:
        known = curve.levels[level]
        if level == 0 and curve.num_small and known.num_blocks == curve.num_small:
            self._consolidate(curve, seals_all=True)
        above = self._table.level(curve, level + 1)
        if above.sealed_end <= known.first_row:
            if not self._can_summarise(curve, level):
                return False
            self._summarise(curve, level)
        # Of the next level, as a rule; where that has been given up as well, of one above it.
        end = self._table.covered_until(curve, level, known.first_row)
        if end is None:
            return False
        blocks = self._table.select(curve, level, known.first_row, sealed_only=True, with_data=False)
        self._table.delete(curve, level, [block for block in blocks if block.end <= end])
        known.first_row = end
        return True

    def _can_summarise(self, curve: Curve, level: int) -> bool:
        """Whether the next level would be smaller: one bucket cannot be made less."""
        blocks = self._table.uncovered(curve, level, with_data=False)
        return sum(block.num_points for block in blocks) > len(blocks)


def _full_rows(columns: Sequence[str]) -> int:
    return max(1, min(BLOCK_ROWS, _BLOCK_VALUES // len(columns)))


def _bytes_at(curve: Curve, level: int) -> int:
    return curve.levels[level].num_bytes if level < len(curve.levels) else 0
