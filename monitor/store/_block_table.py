"""The blocks of a store as rows of its table: found, inserted and deleted, with what is known of each curve's levels.

All that is known can be read back from the table.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from monitor.store._codec import Number
from monitor.store._columns import Row

_ROW_BYTES = 120
"""What a block takes beside its data."""
_COLUMNS = "id, first_row, num_rows, num_points, attempt, layout, LENGTH(data), data"


@dataclass
class Chunk:
    """Rows of one curve that one attempt made: each a step, a time and the values of ``columns``."""

    attempt: int
    columns: tuple[str, ...]
    rows: list[Row] = field(default_factory=list)


class Block(NamedTuple):
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
class Level:
    """What is known of the blocks of one level of a curve."""

    num_bytes: int = 0
    first_row: int = 0
    sealed_end: int = 0  # rows before this one are in sealed blocks
    num_blocks: int = 0
    num_uncovered: int = 0  # sealed blocks that the next level does not cover yet


@dataclass
class Curve:
    """What is known of a curve."""

    id: int
    next_row: int = 0
    num_small: int = 0
    levels: list[Level] = field(default_factory=lambda: [Level()])


class BlockTable:
    """The table of blocks, for the one writer of a store; made anew after every failure."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.curves: dict[tuple[str, str], Curve] = {}
        self._layouts: dict[tuple[str, ...], int] = {}
        self.columns: dict[int, tuple[str, ...]] = {}
        self.num_bytes = 0
        self._load()

    def _load(self) -> None:
        for number, columns in self._connection.execute("SELECT id, columns FROM layout"):
            self._know_layout(number, tuple(columns.split("\n")))
        by_id = {}
        for number, kind, name in self._connection.execute("SELECT id, kind, name FROM curve"):
            by_id[number] = self.curves[kind, name] = Curve(number)
        found = self._connection.execute(
            "SELECT curve, level, COUNT(*), SUM(LENGTH(data)), MIN(first_row), MAX(first_row + num_rows), "
            "MAX(CASE WHEN is_sealed THEN first_row + num_rows ELSE 0 END), SUM(NOT is_sealed) "
            "FROM block GROUP BY curve, level ORDER BY curve, level"
        )
        for number, level, count, num_bytes, first_row, end, sealed_end, num_small in found.fetchall():
            curve = by_id[number]
            known = self.level(curve, level)
            known.num_blocks, known.num_bytes = count, num_bytes + count * _ROW_BYTES
            self.num_bytes += known.num_bytes
            known.first_row, known.sealed_end = first_row, max(sealed_end, first_row)
            curve.num_small += num_small
            curve.next_row = max(curve.next_row, end)
        for curve in by_id.values():
            for finer, coarser in reversed(list(pairwise(curve.levels))):  # the finer one may have given up all it had
                finer.sealed_end = max(finer.sealed_end, coarser.sealed_end)
            for level, known in enumerate(curve.levels):
                known.num_uncovered = len(self.uncovered(curve, level, with_data=False))

    def _know_layout(self, number: int, columns: tuple[str, ...]) -> None:
        self._layouts[columns] = number
        self.columns[number] = columns

    def level(self, curve: Curve, level: int) -> Level:
        """Return what is known of a level of a curve."""
        while len(curve.levels) <= level:
            curve.levels.append(Level(first_row=0))
        return curve.levels[level]

    def last_steps(self, attempt: int) -> dict[tuple[str, str], int]:
        """Return the last step of each curve in an attempt."""
        found = self._connection.execute(
            "SELECT kind, name, MAX(last_step) FROM block JOIN curve ON curve.id = block.curve "
            "WHERE attempt = ? GROUP BY block.curve",
            (attempt,),
        )
        return {(kind, name): step for kind, name, step in found}

    def curve(self, key: tuple[str, str]) -> Curve:
        """Return a curve by kind and name; a new one, if there is none."""
        if key not in self.curves:
            kind, name = (text.encode("utf-8", "backslashreplace").decode() for text in key)
            self._connection.execute("INSERT OR IGNORE INTO curve(kind, name) VALUES (?, ?)", (kind, name))
            found = self._connection.execute("SELECT id FROM curve WHERE kind = ? AND name = ?", (kind, name))
            (number,) = found.fetchone()
            self.curves[key] = Curve(number)
        return self.curves[key]

    def layout(self, columns: tuple[str, ...]) -> int:
        """Return the number of a set of columns."""
        if columns not in self._layouts:
            cursor = self._connection.execute("INSERT INTO layout(columns) VALUES (?)", ("\n".join(columns),))
            assert cursor.lastrowid is not None
            self._know_layout(cursor.lastrowid, columns)
        return self._layouts[columns]

    def insert(
        self,
        curve: Curve,
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
        """Insert a block, by default as the next rows of its curve."""
        start = curve.next_row if first_row is None else first_row
        end_step = steps[-1] if last_step is None else last_step
        self._connection.execute(
            "INSERT INTO block(curve, level, first_row, num_rows, num_points, first_step, last_step, attempt, layout, "
            "is_sealed, data) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (curve.id, level, start, num_rows, num_points, steps[0], end_step, attempt, layout, is_sealed, data),
        )
        known = self.level(curve, level)
        if not known.num_blocks:
            known.first_row = start
            known.sealed_end = max(known.sealed_end, start)
        known.num_blocks += 1
        known.num_bytes += len(data) + _ROW_BYTES
        self.num_bytes += len(data) + _ROW_BYTES
        curve.next_row = max(curve.next_row, start + num_rows)
        if is_sealed:
            known.sealed_end = start + num_rows
            known.num_uncovered += 1

    def select(self, curve: Curve, level: int, start: int, *, sealed_only: bool, with_data: bool) -> list[Block]:
        """Return the blocks of a level from a row on, in order."""
        columns = _COLUMNS if with_data else _COLUMNS.removesuffix("data") + "NULL"
        sealed = "AND is_sealed" if sealed_only else ""
        found = self._connection.execute(
            f"SELECT {columns} FROM block WHERE curve = ? AND level = ? AND first_row >= ? {sealed} ORDER BY first_row",
            (curve.id, level, start),
        )
        return [Block(*row) for row in found]

    def delete(self, curve: Curve, level: int, blocks: Iterable[Block]) -> None:
        """Delete blocks of a level."""
        known = curve.levels[level]
        for block in blocks:
            self._connection.execute("DELETE FROM block WHERE id = ?", (block.id,))
            known.num_blocks -= 1
            known.num_bytes -= block.size + _ROW_BYTES
            self.num_bytes -= block.size + _ROW_BYTES

    def uncovered(self, curve: Curve, level: int, *, with_data: bool) -> list[Block]:
        """Return the sealed blocks of a level that the next one does not cover."""
        above = curve.levels[level + 1] if level + 1 < len(curve.levels) else Level()
        return self.select(curve, level, above.sealed_end, sealed_only=True, with_data=with_data)

    def covered_until(self, curve: Curve, level: int, row: int) -> int | None:
        """Return the row after the first block of a coarser level that reaches beyond a row; None if there is none."""
        sql = "SELECT MIN(first_row + num_rows) FROM block WHERE curve = ? AND level > ? AND first_row + num_rows > ?"
        (end,) = self._connection.execute(sql, (curve.id, level, row)).fetchone()
        return None if end is None else int(end)

    def num_used_bytes(self) -> int:
        """Return what the pages in use take."""
        (pages,) = self._connection.execute("PRAGMA page_count").fetchone()
        (free,) = self._connection.execute("PRAGMA freelist_count").fetchone()
        (size,) = self._connection.execute("PRAGMA page_size").fetchone()
        return int((pages - free) * size)
