"""Create, check and open the SQLite file of a run.

The file is opened only if it may be trusted (:mod:`monitor.store._trusted`). Nothing here opens it without SQLite once
it is there: to close any other descriptor of it would give up the locks that SQLite holds in this process (POSIX).
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
import time
from contextlib import closing, suppress
from functools import cache
from pathlib import Path

from monitor._errors import StoreError
from monitor.store._known import SIDE_SUFFIXES
from monitor.store._trusted import UntrustedError, check_file

VERSION = 1
APPLICATION_ID = 0x746D6F6E
"""``tmon``: training monitor."""
PAGE_BYTES = 4096
_BUSY_SECONDS = 2.0
_WRITER_BUSY_SECONDS = 0.1
"""A reader may find the file locked for the moment of a clean-up; the writer waits for no reader."""
_OPCODES = 20_000
"""SQLite asks for the deadline so often, counted in instructions of its virtual machine: every few milliseconds."""
_SCHEMA = """\
CREATE TABLE fact(key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE event(number INTEGER PRIMARY KEY, kind TEXT NOT NULL, step INTEGER, time REAL, record TEXT NOT NULL);
CREATE TABLE command(number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, record TEXT NOT NULL);
CREATE TABLE attempt(number INTEGER PRIMARY KEY, first_step INTEGER NOT NULL, time REAL NOT NULL);
CREATE TABLE curve(id INTEGER PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL, UNIQUE(kind, name));
CREATE TABLE layout(id INTEGER PRIMARY KEY, columns TEXT NOT NULL UNIQUE);
CREATE TABLE block(id INTEGER PRIMARY KEY, curve INTEGER NOT NULL, level INTEGER NOT NULL, first_row INTEGER NOT NULL,
 num_rows INTEGER NOT NULL, num_points INTEGER NOT NULL, first_step INTEGER NOT NULL, last_step INTEGER NOT NULL,
 attempt INTEGER NOT NULL, layout INTEGER NOT NULL, is_sealed INTEGER NOT NULL, data BLOB NOT NULL);
CREATE INDEX block_order ON block(curve, level, first_row);
"""


def create(path: Path) -> None:
    """Make an empty store at ``path``: whole, or not at all, and readable by the owner only.

    Raises:
        OSError, sqlite3.Error: if it cannot be written.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # 0600
    os.close(descriptor)
    try:
        with closing(sqlite3.connect(temporary, isolation_level=None)) as connection:
            connection.executescript(
                f"PRAGMA page_size = {PAGE_BYTES}; PRAGMA auto_vacuum = NONE; "
                f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {VERSION}; BEGIN; {_SCHEMA} COMMIT;"
            )
        os.rename(temporary, path)
    finally:
        for leftover in (temporary, f"{temporary}-journal"):
            with suppress(OSError):
                os.unlink(leftover)


def open_writing(path: Path) -> sqlite3.Connection:
    """Open a store for its one writer.

    Raises:
        StoreError: for what is not a store of this version.
        OSError, sqlite3.Error: if it cannot be opened.
    """
    connection = _connect(path, "rw", _WRITER_BUSY_SECONDS)
    try:
        _check(connection, path)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA secure_delete = OFF")  # some builds overwrite what is deleted, through the log
    except BaseException:
        connection.close()
        raise
    return connection


def open_reading(path: Path) -> sqlite3.Connection:
    """Open a store for reading, while its run writes it or after.

    Raises:
        StoreError: for what is not a store of this version, or cannot be read.
    """
    mode = "ro"
    try:
        try:
            return _open_reading(path, mode)
        except sqlite3.OperationalError:
            if os.access(path.parent, os.W_OK):
                # The writer was killed while it opened or closed the file: SQLite has a journal to take back first.
                _open_reading(path, "rw").close()
            else:  # SQLite would put an index of the log beside it; what has been folded in can be read without
                mode = "ro&immutable=1"
            return _open_reading(path, mode)
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"{path} cannot be read: {error}") from error


def _open_reading(path: Path, mode: str) -> sqlite3.Connection:
    connection = _connect(path, mode, _BUSY_SECONDS)
    try:
        limit_time(connection, _BUSY_SECONDS)
        connection.execute("PRAGMA query_only = ON")
        _check(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _connect(path: Path, mode: str, patience: float) -> sqlite3.Connection:
    before = _own_file(path)
    for suffix in SIDE_SUFFIXES:
        with suppress(FileNotFoundError):
            _own_file(path.with_name(path.name + suffix))
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=patience,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA cell_size_check = ON")
        if _own_file(path) != before:
            raise StoreError(f"{path} was replaced while it was opened; try again")
    except BaseException:
        connection.close()
        raise
    return connection


def identity(path: Path) -> tuple[int, int]:
    """Return what tells a file from another one of the same name. Raises OSError if there is none."""
    found = os.lstat(path)
    return found.st_dev, found.st_ino


def _own_file(path: Path) -> tuple[int, int]:
    found = os.lstat(path)
    try:
        check_file(path, found)
    except UntrustedError as error:
        raise StoreError(str(error)) from error
    return found.st_dev, found.st_ino


def limit_time(connection: sqlite3.Connection, seconds: float) -> None:
    """Have SQLite give up what takes longer, from now."""
    deadline = time.monotonic() + seconds
    connection.set_progress_handler(lambda: time.monotonic() > deadline, _OPCODES)


def _check(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse what is not a store of this version. A file with other tables, views or triggers runs none of them."""
    try:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if application != APPLICATION_ID:
            raise StoreError(f"{path} is not a run store of training-monitor")
        if version != VERSION:
            raise StoreError(
                f"{path} has schema version {version}, this monitor reads version {VERSION}; "
                "use the monitor that made it"
            )
        if _tables(connection) != _expected_tables():
            raise StoreError(f"{path} is damaged: its tables are not those of a run store")
    except sqlite3.OperationalError:
        raise  # busy, full, interrupted: it may be a store all the same
    except (sqlite3.DatabaseError, ValueError) as error:
        raise StoreError(f"{path} is not a run store, or is damaged: {error}") from error


def _tables(connection: sqlite3.Connection) -> list[tuple[str, ...]]:
    return connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name LIMIT 50").fetchall()


@cache
def _expected_tables() -> list[tuple[str, ...]]:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(_SCHEMA)
        return _tables(connection)
