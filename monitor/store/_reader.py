"""Read the store of a run, while it is written or after: curves at any resolution, events, commands, facts."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from monitor._errors import StoreError
from monitor.store._codec import MAX_ROWS, unpack
from monitor.store._curve import (
    Fields,
    Point,
    bucket_of,
    coarsen,
    points_of_buckets,
    points_of_rows,
    summarise_rows,
    thin_out,
    unpack_buckets,
)
from monitor.store._database import limit_time, open_reading
from monitor.store._known import STORE_FILE
from monitor.store._text import from_text

MAX_POINTS = 100_000
SECONDS = 10.0
"""How long one question may take."""
_MAX_BLOCKS = 2**16
_MAX_LEVELS = 64
_MAX_BLOB = 2**24
_MAX_TEXT = 2**18
"""Sizes that no store of ours reaches: what is larger is damaged or foreign, and is not read into memory."""
_MAX_PAGE = 2**25
"""Characters of text that one answer may have together."""
_MAX_TRIES = 20
"""How often blocks may be gone when they are to be read, with none read in between."""
_MAX_READ_POINTS = 2**20
_NEVER = 2**63
"""A row that no store has."""


class Series(NamedTuple):
    """One column of one curve: ``kind`` is "optimizer" or that of a logged value, ``name`` the optimizer's or the
    value's, ``column`` what is drawn, such as "loss" or, of a logged value, "value"."""

    kind: str
    name: str
    column: str


class Attempt(NamedTuple):
    """Training that went on from an earlier step than it had reached. The first one has number 0 and is not listed."""

    number: int
    first_step: int
    time: float


class Part(NamedTuple):
    """Steps of a curve that an attempt made and a later one did over."""

    attempt: int
    first_step: int
    last_step: int


class _Place(NamedTuple):
    """Where a block lies, without its data."""

    id: int
    curve: int
    level: int
    first_row: int
    num_rows: int
    num_points: int
    first_step: int
    last_step: int
    attempt: int
    layout: int

    @property
    def end(self) -> int:
        return self.first_row + self.num_rows

    @property
    def is_sound(self) -> bool:
        """Whether the figures can be those of a block; a damaged file may hold anything."""
        is_all_integers = all(type(value) is int for value in self)
        return (
            is_all_integers
            and 0 < self.num_points <= min(self.num_rows, MAX_ROWS)
            and self.first_step <= self.last_step
            and 0 <= self.level < _MAX_LEVELS
        )


class StoreReader:
    """Read the store of a run, in one thread at a time. Each question is answered from one consistent state.

    ::

        with StoreReader(folder / "run.db") as store:
            for point in store.curve("optimizer", "optimizer", "loss", points=500):
                print(point.last_step, point.mean, point.minimum, point.maximum)

    Raises:
        StoreError: for what is not a store, is damaged, or takes longer than SECONDS.
    """

    def __init__(self, path: str | os.PathLike[str], counter: Callable[[], float] = time.monotonic) -> None:
        self._path = Path(path)
        if self._path.is_dir():
            self._path /= STORE_FILE
        self._counter = counter
        self._deadline = 0.0
        self._connection = open_reading(self._path)

    def __enter__(self) -> StoreReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Safe to repeat."""
        self._connection.close()

    # ------------------------------------------------------------------------------------------------ records

    def facts(self) -> dict[str, Any]:
        """Return what is known of the whole run: settings, environment, exception and the like."""
        with self._question():
            found = self._texts("SELECT key, {} FROM fact ORDER BY key LIMIT 10000", "value")
            return {key: from_text(text) for key, text in found}

    def events(self, after: int = 0, limit: int = 1000) -> list[dict[str, Any]]:
        """Return the oldest events after number ``after``, ``limit`` at most and as many as fit one answer, each with
        its ``number`` in this file; an empty list means that there are no more."""
        return self._numbered("event", after, limit)

    def commands(self, after: int = 0, limit: int = 1000) -> list[dict[str, Any]]:
        """Return the oldest commands after number ``after`` as :meth:`events` does, each with its outcome if it has
        one."""
        return self._numbered("command", after, limit)

    def _numbered(self, table: str, after: int, limit: int) -> list[dict[str, Any]]:
        sql = f"SELECT number, {{}} FROM {table} WHERE number > {int(after)} ORDER BY number LIMIT {int(limit)}"
        found: list[dict[str, Any]] = []
        room = _MAX_PAGE
        with self._question():
            for number, text in self._texts(sql, "record"):
                room -= len(text)
                if room < 0 and found:
                    break
                record = from_text(text)
                found.append({"number": number, **(record if isinstance(record, Mapping) else {"left_out": record})})
        return found

    def _texts(self, sql: str, column: str, *parameters: Any) -> Iterator[tuple[Any, str]]:
        """Yield key and text of each row; ``{}`` in the statement stands for the text, whose length is asked first."""
        bounded = f"CASE WHEN LENGTH({column}) <= {_MAX_TEXT} THEN {column} END"
        for key, text in self._connection.execute(sql.format(bounded), parameters):
            if not isinstance(text, str):
                raise StoreError(f"{self._path} is damaged: the {column} of {key!r} is missing or too long")
            yield key, text

    def attempts(self) -> list[Attempt]:
        """Return when training started over from an earlier step, oldest first."""
        with self._question():
            sql = "SELECT number, first_step, time FROM attempt ORDER BY number LIMIT 10000"
            return [Attempt(*row) for row in self._connection.execute(sql)]

    def series(self) -> list[Series]:
        """Return what there are curves of."""
        with self._question():
            kinds = dict(self._texts("SELECT id, {} FROM curve LIMIT 100000", "kind"))
            names = dict(self._texts("SELECT id, {} FROM curve LIMIT 100000", "name"))
            layouts = dict(self._texts("SELECT id, {} FROM layout LIMIT 1000", "columns"))
            pairs = self._connection.execute(
                "SELECT DISTINCT curve, layout FROM block ORDER BY curve, layout LIMIT 100000"
            ).fetchall()
            found = dict.fromkeys(
                Series(kinds[curve], names[curve], column)
                for curve, layout in pairs
                for column in layouts[layout].split("\n")
            )
            return list(found)

    # ------------------------------------------------------------------------------------------------- curves

    def curve(
        self,
        kind: str,
        name: str,
        column: str = "value",
        *,
        first_step: int | None = None,
        last_step: int | None = None,
        points: int = 1000,
        with_abandoned: bool = False,
    ) -> list[Point]:
        """Return the course of one series between two steps, both included, as at most ``points`` points.

        Rows from before the series had its column have no point.

        ``with_abandoned`` includes what a later attempt has done over. What is not kept row by row any more comes in
        buckets; one that spans ``first_step``, ``last_step`` or the step of a later attempt is whole.

        Raises:
            ValueError: for ``points`` out of range.
        """
        (found,) = self._curves(
            kind, name, [column], first_step, last_step, points, with_abandoned=with_abandoned, is_padded=False
        )
        return found

    def curves(
        self,
        kind: str,
        name: str,
        columns: Sequence[str],
        *,
        points: int = 1000,
        part: Part | None = None,
        with_abandoned: bool = False,
    ) -> list[list[Point]]:
        """Return several columns of one whole curve, or of a ``part`` that was abandoned, a list for each, from one
        state of the file.

        The lists are of equal length, and points at the same place span the same rows; one for rows that lack the
        column has no value. Otherwise as :meth:`curve`. Each column may take SECONDS.
        """
        if part is None:
            return self._curves(kind, name, columns, None, None, points, with_abandoned=with_abandoned, is_padded=True)
        attempt, first, last = part
        return self._curves(kind, name, columns, first, last, points, attempt=attempt, is_padded=True)

    def abandoned(self, kind: str, name: str) -> list[Part]:
        """Return what later attempts did over of a curve, oldest first."""
        with self._question():
            curve = self._curve_id(kind, name)
            cuts = {} if curve is None else self._cuts(curve)
            sql = "SELECT attempt, MIN(first_step), MAX(last_step) FROM block WHERE curve = ? GROUP BY attempt"
            found = self._connection.execute(f"{sql} ORDER BY attempt LIMIT 10000", (curve,)).fetchall()
            parts = [Part(number, max(first, cuts[number]), last) for number, first, last in found if number in cuts]
            return [part for part in parts if part.first_step <= part.last_step]

    def _curves(
        self,
        kind: str,
        name: str,
        columns: Sequence[str],
        first_step: int | None,
        last_step: int | None,
        points: int,
        *,
        with_abandoned: bool = True,
        attempt: int | None = None,
        is_padded: bool,
    ) -> list[list[Point]]:
        if not 1 <= points <= MAX_POINTS:
            raise ValueError(f"points must be between 1 and {MAX_POINTS}, got {points}")

        def is_wanted(point: Point) -> bool:
            return (
                (first_step is None or point.last_step >= first_step)
                and (last_step is None or point.first_step <= last_step)
                and (with_abandoned or not point.is_abandoned)
                and (attempt is None or point.attempt == attempt)
            )

        with self._question():
            curve = self._curve_id(kind, name)
            if curve is None:
                return [[] for _ in columns]
            shares = {
                place: share for place in self._places(curve) if (share := _share(place, first_step, last_step)) > 0
            }
            level = _level_for(shares, points)
            chosen = _cover(list(shares), level)
            if sum(place.num_points for place, _ in chosen) > _MAX_READ_POINTS:
                raise StoreError(f"{self._path} is damaged: its blocks are out of proportion")
            mark = _marker(self._cuts(curve))
            found = []
            for column in columns:
                self._start_clock()
                row, marked = 0, list[Point]()
                for place, stop in chosen:
                    points_of = self._read(place, column, level, is_padded=is_padded) or ()
                    for point, end in _share_of(points_of, place, row, stop):
                        marked.append(mark(point))
                        row = end
                found.append(thin_out([point for point in marked if is_wanted(point)], points))
            return found

    def rows(self, kind: str, name: str, column: str = "value") -> Iterator[Point]:
        """Return a whole series at the finest resolution there is, abandoned parts too, a block at a time.

        Each block is a question of its own, so that a slow reader never holds up the run's writer.
        """
        row, num_tries = 0, 0
        while True:
            num_tries += 1
            with self._question():
                curve = self._curve_id(kind, name)
                if curve is None:
                    return
                chosen = [(place, stop) for place, stop in _cover(self._places(curve, row), 0) if stop > row]
                mark = _marker(self._cuts(curve))
            for place, stop in chosen:
                with self._question():
                    points = self._read(place, column, 0, may_be_gone=True)
                if points is None:
                    if num_tries >= _MAX_TRIES:
                        raise StoreError(f"{self._path} changes faster than it can be read; try again")
                    break
                num_tries = 0
                for point, end in _share_of(points, place, row, stop):
                    yield mark(point)
                    row = end
                row = max(row, stop)
            else:
                return

    def _curve_id(self, kind: str, name: str) -> int | None:
        sql = "SELECT id FROM curve WHERE kind = ? AND name = ?"
        found = self._connection.execute(sql, (kind, name)).fetchone()
        return None if found is None else int(found[0])

    def _places(self, curve: int, row: int = 0) -> list[_Place]:
        found = self._connection.execute(
            "SELECT id, curve, level, first_row, num_rows, num_points, first_step, last_step, attempt, layout "
            f"FROM block WHERE curve = ? AND first_row + num_rows > ? ORDER BY level, first_row LIMIT {_MAX_BLOCKS}",
            (curve, row),
        )
        places = [_Place(*one) for one in found]
        for place in places:
            if not place.is_sound:
                raise StoreError(f"{self._path} is damaged: block {place.id} has impossible figures")
        return places

    def _cuts(self, curve: int) -> dict[int, int]:
        """Return for each attempt the step from which a later one did it over."""
        starts = dict(self._connection.execute("SELECT number, first_step FROM attempt LIMIT 10000").fetchall())
        own = "SELECT attempt, MIN(first_step) FROM block WHERE curve = ? GROUP BY attempt LIMIT 10000"
        found = dict(self._connection.execute(own, (curve,)).fetchall())
        starts.update({number: step for number, step in found.items() if number})
        cuts: dict[int, int] = {}
        lowest: int | None = None
        for number in sorted({*starts, *found}, reverse=True):
            if lowest is not None:
                cuts[number] = lowest
            if number in starts:
                lowest = starts[number] if lowest is None else min(lowest, starts[number])
        return cuts

    def _read(
        self, place: _Place, column: str, level: int, *, may_be_gone: bool = False, is_padded: bool = False
    ) -> list[Point] | None:
        """Return the points of one block, no finer than ``level``; None if it is gone and may be.

        A block that lacks the column has no points or, if ``is_padded``, points without a value.
        """
        if self._counter() > self._deadline:
            raise StoreError(f"{self._path} did not answer within {SECONDS:g} s")
        columns = next(self._texts("SELECT id, {} FROM layout WHERE id = ?", "columns", place.layout), None)
        # A number that was deleted may be given again: the rest of the key tells whether it is the same block.
        sql = (
            f"SELECT CASE WHEN LENGTH(data) <= {_MAX_BLOB} THEN data END FROM block WHERE id = ? AND curve = ? AND "
            "level = ? AND first_row = ? AND num_rows = ? AND num_points = ?"
        )
        found = self._connection.execute(sql, place[:6]).fetchone()
        if found is None and may_be_gone:
            return None
        try:
            if found is None or columns is None:
                raise ValueError("its parts do not fit together")
            names = columns[1].split("\n")
            if column not in names and not is_padded:
                return []
            index = [names.index(column)] if column in names else []
            if place.level == 0:
                rows = tuple(unpack(found[0], place.num_points, [0, 1, *(2 + i for i in index)]))
                rows = rows if index else (*rows, [None] * place.num_points)
                if level == 0:
                    return list(points_of_rows(place.attempt, rows))
                buckets = summarise_rows(rows)
            else:
                buckets = unpack_buckets(found[0], place.num_points, index)
                buckets = buckets if index else buckets._replace(columns=[_no_values(place.num_points)])
            return list(points_of_buckets(place.attempt, coarsen(buckets, max(1, place.level), level)))
        except (TypeError, ValueError, AttributeError) as error:
            raise StoreError(f"{self._path} is damaged: block {place.id}: {error}") from error

    @contextmanager
    def _question(self) -> Iterator[None]:
        """Answer from one state of the file, in bounded time, and let go of it."""
        self._start_clock()
        try:
            self._connection.execute("BEGIN")
            yield
        except sqlite3.OperationalError as error:
            raise StoreError(f"{self._path} cannot be read: {error}") from error
        except (sqlite3.Error, KeyError, ValueError, TypeError, OverflowError) as error:
            raise StoreError(f"{self._path} is damaged: {error}") from error
        finally:
            if self._connection.in_transaction:
                self._connection.rollback()

    def _start_clock(self) -> None:
        limit_time(self._connection, SECONDS)
        self._deadline = self._counter() + SECONDS


def _no_values(count: int) -> Fields:
    empty = bucket_of([])
    return tuple([value] * count for value in empty)


def _share(place: _Place, first_step: int | None, last_step: int | None) -> float:
    """Return which part of a block's steps lies in a range."""
    first = place.first_step if first_step is None else max(place.first_step, first_step)
    last = place.last_step if last_step is None else min(place.last_step, last_step)
    return max(0, last - first + 1) / (place.last_step - place.first_step + 1)


def _level_for(shares: Mapping[_Place, float], points: int) -> int:
    """Return the coarsest level that still has about ``points`` points; 0 if none has."""
    for level in sorted({place.level for place in shares}, reverse=True):
        if sum(place.num_points * share for place, share in shares.items() if place.level == level) >= points:
            return level
    return 0


def _cover(places: list[_Place], preferred: int) -> list[tuple[_Place, int]]:
    """Return blocks that hold every row, in order, each with the row before which it counts: of the preferred level
    where it has them, coarser ones before (the oldest rows are kept coarsely only), finer ones after (the newest have
    not been summarised yet). A coarse block may reach over rows that are still there one by one."""
    by_level: dict[int, list[_Place]] = {}
    for place in places:
        by_level.setdefault(place.level, []).append(place)
    chosen = by_level.get(preferred, [])
    for level in range(preferred - 1, -1, -1):
        end = chosen[-1].end if chosen else 0
        chosen = chosen + [place for place in by_level.get(level, []) if place.first_row >= end]
    for level in range(preferred + 1, max(by_level, default=0) + 1):
        start = chosen[0].first_row if chosen else None
        chosen = [place for place in by_level.get(level, []) if start is None or place.first_row < start] + chosen
    starts = [*(place.first_row for place in chosen[1:]), _NEVER]
    return [(place, min(place.end, start)) for place, start in zip(chosen, starts, strict=False)]


def _share_of(points: Iterable[Point], place: _Place, row: int, stop: int) -> Iterator[tuple[Point, int]]:
    """Return those of a block's points that hold a row from ``row`` on and begin before ``stop``, each with the row
    after it."""
    begin = place.first_row
    for point in points:
        end = begin + point.num_rows
        if begin >= stop:
            return
        if end > row:
            yield point, end
        begin = end


def _marker(cuts: Mapping[int, int]) -> Callable[[Point], Point]:
    if not cuts:
        return lambda point: point
    return partial(_mark, cuts)


def _mark(cuts: Mapping[int, int], point: Point) -> Point:
    cut = cuts.get(point.attempt)
    return point._replace(is_abandoned=True) if cut is not None and point.first_step >= cut else point
