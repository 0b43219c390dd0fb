"""The one writer of a run's store: takes records, and commits them once a second.

Nothing is written between two commits, and one commit is one transaction (several where very many curves are touched):
whatever kills the process leaves the store as its last commit made it. What is taken is held in plain lists until then.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monitor._errors import StoreError
from monitor._records import CommandRecord, Event, Sample, Step
from monitor.store._block_table import Chunk
from monitor.store._blocks import Blocks
from monitor.store._columns import LOGGED_COLUMNS, OPTIMIZER, READINGS, SKIPPED, Row, row_of, step_columns
from monitor.store._database import PAGE_BYTES, create, identity, open_writing
from monitor.store._text import to_text

MAX_BYTES = 64 * 2**20
MIN_BYTES = 2 * 2**20
COMMIT_SECONDS = 1.0
RETRY_SECONDS = 5.0
"""How long after a failure the store is left alone."""
CURVE_BYTES = 4096
"""What a curve takes at the very least, once all it has is in the coarsest buckets; bounds the number of curves."""
MAX_ATTEMPTS = 1000
_MAX_TEXTS = 4096
"""Events and commands that wait for one commit."""
_CHUNK_VALUES = 32
"""What a block takes beside its values, in values of eight bytes."""
_LOG_SHARE = 16
"""The write-ahead log may take this part of the size before it is folded in, and twice that before writing stops."""
_TEXT_SHARE = 8
"""Events and commands may take this part of the size each; then the oldest go."""
_FILL, _FILL_AFTER_FAILURE = 0.9, 0.7
"""How full the file may be when a commit ends, less _RESERVE_BYTES for the pages of the next one; and how full before
the first one after a failure, which may have been that there was no room."""
_RESERVE_BYTES = 2**18
_MAX_INTEGER = 2**63 - 1


@dataclass
class _Pending:
    """What waits of one curve: rows in the order of their arrival, a chunk for each attempt and set of columns."""

    chunks: list[Chunk] = field(default_factory=list)
    last_step: int | None = None


class StoreWriter:
    """Write the store of one run. Used by one thread at a time; only :meth:`commit` and :meth:`close` touch the disk.

    Args:
        path: the file; made by the first commit. A store that is there is continued.
        max_bytes: what the file and its write-ahead log may take together. Beyond it the oldest rows give way to
            coarser buckets, and the oldest events go.
        clock: Unix time.
        counter: a monotonic clock in seconds.

    ::

        writer = StoreWriter(folder / "run.db")
        writer.add_step(step, loss_ema=0.7)
        if writer.is_due:
            writer.commit()
        writer.close()

    A failure (no room, a folder that is read-only, a foreign file) is one :class:`monitor._errors.StoreError` from
    :meth:`commit`; nothing else is raised. What could not be written is kept up to a bound, then dropped and counted
    in ``num_dropped``. Commits do nothing for RETRY_SECONDS, then try again.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int = MAX_BYTES,
        clock: Callable[[], float] = time.time,
        counter: Callable[[], float] = time.monotonic,
    ) -> None:
        if max_bytes < MIN_BYTES:
            raise ValueError(f"max_bytes must be {MIN_BYTES} or more, got {max_bytes}")
        self._path = Path(path).absolute()
        self._max_bytes = max_bytes
        self._clock = clock
        self._counter = counter
        self._log_bytes = max(max_bytes // _LOG_SHARE, 16 * PAGE_BYTES)
        self._file_bytes = max(max_bytes - 3 * self._log_bytes, 16 * PAGE_BYTES)
        self._max_values = max(2**12, max_bytes // 128)
        self._max_chunks = max(8, self._log_bytes // PAGE_BYTES // 2)
        self._max_curves = max_bytes // CURVE_BYTES
        self._connection: sqlite3.Connection | None = None
        self._blocks: Blocks | None = None
        self._identity = (0, 0)
        self._data_version = 0
        self._committed = counter() - COMMIT_SECONDS
        self._retry_at = counter()
        self._has_failed = False
        self._pending: dict[tuple[str, str], _Pending] = {}
        self._readings: list[Chunk] = []
        self._num_values = 0
        self._texts: deque[tuple[str, Any]] = deque()
        self._facts: dict[str, str] = {}
        self._attempt = 0
        self._attempt_starts: list[tuple[int, int, float]] = []
        self._base: int | None = None
        self._reasons: dict[str, str | None] = {}
        self._text_bytes = {"event": 0, "command": 0}
        self.num_dropped = 0
        self._num_dropped_before = 0

    # ------------------------------------------------------------------------------------------------ records

    def add_step(self, step: Step, *, loss_ema: float | None = None, time: float | None = None) -> None:
        """Take one step. ``time`` is the Unix time to show; that of the step by default."""
        if step.gradient_norm_reason != self._reasons.get(step.optimizer):
            self._reasons[step.optimizer] = step.gradient_norm_reason
            self.set_fact(f"gradient_norm_reason/{step.optimizer}", step.gradient_norm_reason)
        row = row_of(step, step.time if time is None else time, loss_ema)
        is_strict = not step.is_skipped  # one that was skipped has the number of the one before
        self._add((OPTIMIZER, step.optimizer), step_columns(len(step.groups)), row, is_strict=is_strict)

    def add_sample(self, sample: Sample, *, time: float | None = None) -> None:
        """Take one logged value, under any name."""
        row = (sample.step, sample.time if time is None else time, sample.value)
        self._add((sample.kind, sample.name), LOGGED_COLUMNS, row, is_strict=False)

    def add_reading(self, values: Mapping[str, float | None], *, time: float) -> None:
        """Take one round of readings of the machine, by the names of their columns, made at a Unix time."""
        if self._num_values > self._max_values:
            self.num_dropped += 1
            return
        columns = tuple(values)
        if not self._readings or self._readings[-1].columns != columns:
            self._readings.append(Chunk(0, columns))
            self._num_values += _CHUNK_VALUES
        self._readings[-1].rows.append((time, *values.values()))
        self._num_values += len(values) + 2

    def _add(self, key: tuple[str, str], columns: tuple[str, ...], row: Row, *, is_strict: bool) -> None:
        """``is_strict``: a step that comes again, too, is one of a new attempt."""
        step = row[0]
        pending = self._pending.get(key)
        if pending is None:
            if len(self._pending) >= self._max_curves:
                self.num_dropped += 1
                return
            pending = self._pending[key] = _Pending()
        if type(step) is not int or not -_MAX_INTEGER <= step <= _MAX_INTEGER or self._num_values > self._max_values:
            self.num_dropped += 1
            return
        last = pending.last_step
        if last is not None and (step < last or (is_strict and step == last)):
            self._begin_attempt(step)
        pending.last_step = step
        chunks = pending.chunks
        if not chunks or chunks[-1].columns is not columns or chunks[-1].attempt != self._attempt:
            chunks.append(Chunk(self._attempt, columns))
            self._num_values += _CHUNK_VALUES
        chunks[-1].rows.append(row)
        self._num_values += len(row)

    def _begin_attempt(self, step: int) -> None:
        """A step that goes back begins a new attempt; every curve starts it afresh."""
        if self._attempt < MAX_ATTEMPTS:
            self._attempt += 1
            self._attempt_starts.append((self._attempt, step, self._clock()))
        for pending in self._pending.values():
            pending.last_step = None

    def add_event(self, event: Event) -> None:
        """Take one event; the end of one is another event, as in the run's own log."""
        self._add_text("event", event)

    def add_command(self, record: CommandRecord) -> None:
        """Take a command, or once more with its outcome."""
        self._add_text("command", record)

    def _add_text(self, table: str, record: Any) -> None:
        if len(self._texts) >= _MAX_TEXTS:
            self.num_dropped += 1
            return
        self._texts.append((table, record))

    def set_fact(self, key: str, value: Any) -> None:
        """Keep a fact of the whole run, such as ``settings``, ``environment`` or ``exception``; a later value
        replaces it."""
        self._facts[key] = to_text(value)

    # ------------------------------------------------------------------------------------------------ commits

    @property
    def is_due(self) -> bool:
        """Whether a commit should be made: a second has passed since the last, or much is waiting."""
        now = self._counter()
        if now < self._retry_at or not self._has_pending:
            return False
        return now - self._committed >= COMMIT_SECONDS or 2 * self._num_values > self._max_values

    @property
    def _has_pending(self) -> bool:
        return bool(self._num_values or self._texts or self._facts)

    def commit(self) -> None:
        """Write what is waiting, as one transaction; nothing while a failure is recent.

        Raises:
            StoreError: if it cannot be written. It is kept, as far as there is room for it.
        """
        if not self._has_pending or self._counter() < self._retry_at:
            return
        try:
            connection = self._open()
            self._fold_log(connection)
            self._write(connection)
        except StoreError:
            self._fail()
            raise
        except (OSError, sqlite3.Error) as error:
            self._fail()
            raise StoreError(f"{self._path} cannot be written: {error}") from error
        except Exception as error:
            self._fail()
            self._drop_pending()  # one of the records may be the cause, and would be again
            raise StoreError(f"{self._path} cannot be written: {error!r}") from error
        self._committed = self._counter()
        self._has_failed = False

    def close(self) -> None:
        """Commit what is waiting, fold the write-ahead log in and close the file. Safe to repeat.

        Raises:
            StoreError: as :meth:`commit`; the file is closed all the same.
        """
        self._retry_at = self._counter()
        try:
            self.commit()
            if self._connection is not None:
                with suppress(sqlite3.Error):  # with readers at it the log stays; they can read it
                    self._connection.execute("PRAGMA journal_mode = DELETE")
        finally:
            self._close()

    def _drop_pending(self) -> None:
        chunks = [*self._readings, *(chunk for pending in self._pending.values() for chunk in pending.chunks)]
        self.num_dropped += sum(len(chunk.rows) for chunk in chunks) + len(self._texts) + len(self._facts)
        self._clear(0)

    def _fail(self) -> None:
        self._close()
        self._has_failed = True
        self._retry_at = self._counter() + RETRY_SECONDS

    def _close(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = self._blocks = None

    def _open(self) -> sqlite3.Connection:
        """Return the connection to the file that is there now."""
        if self._connection is not None:
            with suppress(OSError):
                if identity(self._path) == self._identity:
                    return self._connection
            self._close()  # removed or replaced: what is written into the old one, nobody will read
        if not os.path.lexists(self._path):
            create(self._path)
        connection = open_writing(self._path)
        self._connection, self._identity = connection, identity(self._path)
        connection.execute(f"PRAGMA wal_autocheckpoint = {self._log_bytes // PAGE_BYTES}")
        connection.execute(f"PRAGMA journal_size_limit = {self._log_bytes}")
        connection.execute(f"PRAGMA max_page_count = {(self._file_bytes + self._log_bytes) // PAGE_BYTES}")
        self._data_version = self._read_data_version(connection)
        self._blocks = Blocks(connection)
        for table in self._text_bytes:
            found = connection.execute(f"SELECT COALESCE(SUM(LENGTH(record)), 0) FROM {table}").fetchone()
            self._text_bytes[table] = found[0]
        if self._base is None:
            self._base = self._find_base(connection, self._blocks)
            found = connection.execute("SELECT value FROM fact WHERE key = 'dropped'").fetchone()
            self._num_dropped_before = int(found[0]) if found else 0
        return connection

    def _find_base(self, connection: sqlite3.Connection, blocks: Blocks) -> int:
        """Return the attempt that the first rows of this writer belong to: the last in the store, or a new one if they
        go back behind it."""
        (last,) = connection.execute("SELECT MAX(attempt) FROM block").fetchone()
        if last is None:
            return 0
        ends = blocks.last_steps(last)
        for key, pending in self._pending.items():
            if pending.chunks and key in ends:
                row: Any = pending.chunks[0].rows[0]
                step = row[0]
                if step < ends[key] or (step == ends[key] and key[0] == OPTIMIZER and not row[SKIPPED]):
                    self._attempt_starts.insert(0, (0, step, self._clock()))
                    return int(last) + 1
        if self._attempt == 0:  # what comes next is compared with what is there
            for key, step in ends.items():
                pending = self._pending.setdefault(key, _Pending())
                if pending.last_step is None:
                    pending.last_step = step
        return int(last)

    def _read_data_version(self, connection: sqlite3.Connection) -> int:
        """Return a number that changes whenever another connection writes the file."""
        return int(connection.execute("PRAGMA data_version").fetchone()[0])

    def _fold_log(self, connection: sqlite3.Connection) -> None:
        """Keep the write-ahead log from growing behind a reader that does not let go."""
        try:
            size = os.stat(f"{self._path}-wal").st_size
        except FileNotFoundError:
            return
        if size > self._log_bytes:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            size = os.stat(f"{self._path}-wal").st_size
        if size > 2 * self._log_bytes:
            raise StoreError(f"{self._path} cannot be written: a reader has held it for long, and its log is full")

    def _write(self, connection: sqlite3.Connection) -> None:
        """Write all that waits: one transaction, or several where so many curves are touched that the log of one would
        not stay within its share."""
        blocks, base = self._blocks, self._base
        assert blocks is not None
        assert base is not None
        if self._has_failed:
            self._make_room(connection, blocks, _FILL_AFTER_FAILURE)
        self._begin(connection)
        try:
            for attempt, step, started in self._attempt_starts:
                connection.execute("INSERT OR IGNORE INTO attempt VALUES (?, ?, ?)", (base + attempt, step, started))
            num_unfit = num_chunks = 0
            written: list[_Pending] = []
            for key, pending in self._pending.items():
                if not pending.chunks:
                    continue
                for chunk in pending.chunks:
                    num_unfit += blocks.append(key, base + chunk.attempt, chunk)
                num_chunks += len(pending.chunks)
                written.append(pending)
                if num_chunks >= self._max_chunks:
                    self._turn(connection)
                    self._forget(written)
                    num_chunks, written = 0, []
            num_unfit += sum(blocks.append_by_time(READINGS, chunk) for chunk in self._readings)
            self._write_texts(connection)
            self._write_facts(connection, self.num_dropped + num_unfit)
            is_full = blocks.shrink(self._goal(_FILL), max(1, self._max_chunks // 8))
            connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise
        self._clear(num_unfit)
        if is_full:
            self._make_room(connection, blocks, _FILL)

    def _begin(self, connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")
        if self._read_data_version(connection) != self._data_version:
            raise StoreError(f"{self._path} is written by another process too; one run has one writer")

    def _turn(self, connection: sqlite3.Connection) -> None:
        """End one transaction and begin the next; the log may be folded in between."""
        connection.execute("COMMIT")
        self._fold_log(connection)
        self._begin(connection)

    def _make_room(self, connection: sqlite3.Connection, blocks: Blocks, fill: float) -> None:
        """Give up blocks in transactions of their own."""
        is_full = True
        while is_full:
            self._fold_log(connection)
            self._begin(connection)
            try:
                is_full = blocks.shrink(self._goal(fill), max(1, self._max_chunks // 8))
                connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise

    def _forget(self, written: Iterable[_Pending]) -> None:
        for pending in written:
            for chunk in pending.chunks:
                self._num_values -= _CHUNK_VALUES + len(chunk.rows) * (len(chunk.columns) + 2)
            pending.chunks = []

    def _goal(self, fill: float) -> int:
        return int(fill * self._file_bytes) - min(_RESERVE_BYTES, self._file_bytes // 4)

    def _clear(self, num_unfit: int) -> None:
        for pending in self._pending.values():
            if pending.chunks:
                pending.chunks = []
        self._readings.clear()
        self._num_values = 0
        self._texts.clear()
        self._facts.clear()
        self._attempt_starts.clear()
        self.num_dropped += num_unfit

    def _write_texts(self, connection: sqlite3.Connection) -> None:
        for table, record in self._texts:
            text = to_text(record)
            self._text_bytes[table] += len(text)
            if table == "event":
                step = record.step if abs(record.step) <= _MAX_INTEGER else None  # the record itself has it in full
                sql = "INSERT INTO event(kind, step, time, record) VALUES (?, ?, ?, ?)"
                connection.execute(sql, (record.kind, step, record.time, text))
            else:
                sql = "INSERT INTO command(id, record) VALUES (?, ?) ON CONFLICT(id) DO UPDATE SET record = ?"
                connection.execute(sql, (record.id, text, text))
        for table in self._text_bytes:
            while self._text_bytes[table] > self._max_bytes // _TEXT_SHARE:
                self._forget_oldest(connection, table)

    def _forget_oldest(self, connection: sqlite3.Connection, table: str) -> None:
        oldest = f"SELECT number FROM {table} ORDER BY number LIMIT 64"
        connection.execute(f"DELETE FROM {table} WHERE number IN ({oldest})")
        (self._text_bytes[table],) = connection.execute(
            f"SELECT COALESCE(SUM(LENGTH(record)), 0) FROM {table}"
        ).fetchone()

    def _write_facts(self, connection: sqlite3.Connection, num_dropped: int) -> None:
        facts: Iterator[tuple[str, str]] = iter(self._facts.items())
        if num_dropped:
            facts = iter([*self._facts.items(), ("dropped", str(self._num_dropped_before + num_dropped))])
        connection.executemany("INSERT INTO fact VALUES (?1, ?2) ON CONFLICT(key) DO UPDATE SET value = ?2", facts)
