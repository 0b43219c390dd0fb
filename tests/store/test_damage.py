"""Whatever lies where a store should be, a reader refuses it with one error that says why, soon and without reading
it into memory."""

from __future__ import annotations

import os
import random
import re
import resource
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from monitor._errors import StoreError
from monitor.store import StoreReader, StoreWriter
from monitor.store._reader import SECONDS
from tests.foreign import give_away
from tests.store.made import Clock, a_sample, a_step, an_event, write

ADAM = ("optimizer", "adam")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.db"


def read_all(path: Path) -> None:
    """Ask a store for everything it has, in one order and the other."""
    with StoreReader(path) as store:
        store.facts()
        store.events()
        store.commands()
        store.attempts()
        for series in store.series():
            store.curve(*series)
            list(store.rows(*series))


def in_sql(*statements: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        connection = sqlite3.connect(path)
        connection.executescript(";".join(["PRAGMA writable_schema = OFF", *statements]))
        connection.close()

    return damage


def garbage(path: Path) -> None:
    """200 MB that are no database; sparse, as only their beginning matters."""
    with open(path, "wb") as file:
        file.write(b"not a database " * 1000)
        file.truncate(200 * 2**20)


def database_of_another(path: Path) -> None:
    path.unlink()
    in_sql("CREATE TABLE mail(subject)")(path)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def linked_log(path: Path) -> None:
    path.with_name("run.db-wal").symlink_to("/etc/passwd")


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT"
CASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "nothing there": (Path.unlink, "cannot be read"),
    "an empty file": (lambda path: path.write_bytes(b"") and None, "is not a run store"),
    "200 MB of garbage": (garbage, "is not a run store"),
    "another program's database": (database_of_another, "is not a run store of training-monitor"),
    "a later version": (in_sql("PRAGMA user_version = 7"), "has schema version 7, this monitor reads version 1"),
    "cut in half": (cut, "damaged"),
    "a link": (link, "is a link, and links are not followed"),
    "a link as its log": (linked_log, "is a link, and links are not followed"),
    "a FIFO": (fifo, "is not a regular file"),
    "a folder": (folder, "cannot be read"),
    "another table": (in_sql("CREATE TABLE more(a)"), "its tables are not those of a run store"),
    "a trigger": (
        in_sql("CREATE TRIGGER t AFTER INSERT ON fact BEGIN DELETE FROM event; END"),
        "its tables are not those of a run store",
    ),
    "an endless view": (
        in_sql("DROP TABLE fact", f"CREATE VIEW fact AS {ENDLESS} i AS key, i AS value FROM n"),
        "its tables are not those of a run store",
    ),
    "a gigantic text": (in_sql("UPDATE event SET record = hex(zeroblob(2000000))"), "is missing or too long"),
    "a text that is no JSON": (in_sql("UPDATE event SET record = '{'"), "is damaged"),
    "a number for a text": (in_sql("UPDATE event SET record = 3"), ""),
    "JSON that is nested too deeply": (
        in_sql("UPDATE event SET record = replace(hex(zeroblob(100000)), '0', '[')"),
        "is damaged",
    ),
    "a gigantic block": (in_sql("UPDATE block SET data = zeroblob(20000000)"), "is damaged: block"),
    "a gigantic list of columns": (in_sql("UPDATE layout SET columns = hex(zeroblob(2000000))"), "missing or too long"),
    "a gigantic name": (in_sql("UPDATE curve SET name = hex(zeroblob(2000000))"), "is missing or too long"),
    "curves that are gone": (in_sql("DELETE FROM curve"), "is damaged"),
    "a block of zeros": (in_sql("UPDATE block SET data = zeroblob(1000)"), "is damaged"),
    "a block of text": (in_sql("UPDATE block SET data = 'text'"), "is damaged"),
    "a billion rows": (in_sql("UPDATE block SET num_points = 1000000000, num_rows = 1000000000"), "impossible figures"),
    "fewer rows than there are": (in_sql("UPDATE block SET num_points = num_points - 1"), "is damaged"),
    "no rows": (in_sql("UPDATE block SET num_points = 0, num_rows = 0"), "impossible figures"),
    "text for numbers": (in_sql("UPDATE block SET first_step = 'a', attempt = 'b', level = 'c'"), "impossible figures"),
    "steps the wrong way round": (in_sql("UPDATE block SET first_step = last_step + 1"), "impossible figures"),
    "layouts that are gone": (in_sql("DELETE FROM layout"), "is damaged"),
    "layouts of nothing": (in_sql("UPDATE layout SET columns = ''"), ""),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_file_is_refused_with_a_reason(case: str, path: Path) -> None:
    """Every kind of bad file is a StoreError that names the file and the reason, or is read as what it says."""
    damage, reason = CASES[case]
    writer = write(path, range(1, 3001))
    writer.add_event(an_event())
    writer.close()
    damage(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if reason:
        with pytest.raises(StoreError, match=re.escape(reason)) as caught:
            read_all(path)
        assert str(path) in str(caught.value)
    else:
        read_all(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000  # KiB


@pytest.mark.parametrize("sql", ["data = zeroblob(20000000)", "data = zeroblob(100)", "num_points = 1, num_rows = 1"])
def test_reading_row_by_row_ends(sql: str, path: Path) -> None:
    """Damaged blocks end the reading of rows, too: nothing is tried again for ever."""
    write(path, range(1, 3001)).close()
    in_sql(f"UPDATE block SET {sql}")(path)
    with StoreReader(path) as store, pytest.raises(StoreError, match="is damaged"):
        list(store.rows(*ADAM, "loss"))


def test_an_answer_has_a_bound(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many events are asked for, one answer has so much text; the next has what follows."""
    monkeypatch.setattr("monitor.store._reader._MAX_PAGE", 1000)
    writer = StoreWriter(path)
    for step in range(50):
        writer.add_event(an_event(step))
    writer.close()
    steps: list[int] = []
    with StoreReader(path) as store:
        after = 0
        while page := store.events(after, limit=1000):
            assert len(page) < 10
            steps += [event["step"] for event in page]
            after = page[-1]["number"]
    assert steps == list(range(50))


def test_a_file_of_another_user_is_not_opened(path: Path) -> None:
    """Only files of one's own and root's are opened: another user's may be made to harm."""
    write(path, [1]).close()
    give_away(path)
    with pytest.raises(StoreError, match=r"belongs to user \d+, and only what is yours or root's is used"):
        StoreReader(path)


def test_a_file_that_is_replaced_while_it_is_opened_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was looked at is what is read: a file that took its place in between is not."""
    write(path, [1]).close()
    connect = sqlite3.connect

    def replace_and_connect(*given: Any, **options: Any) -> sqlite3.Connection:
        other = path.with_name("other")
        other.write_bytes(path.read_bytes())
        other.replace(path)
        return connect(*given, **options)

    monkeypatch.setattr(sqlite3, "connect", replace_and_connect)
    with pytest.raises(StoreError, match="was replaced while it was opened; try again"):
        StoreReader(path)


def test_a_question_that_takes_too_long_is_given_up(path: Path) -> None:
    """However much a file makes SQLite work, a question ends."""
    from monitor.store import _database

    write(path, [1]).close()
    with StoreReader(path) as store:
        started = time.monotonic()
        with pytest.raises(StoreError, match="interrupted"), store._question():
            _database.limit_time(store._connection, 0.05)
            store._connection.execute(f"{ENDLESS} SUM(i) FROM n").fetchone()
        assert time.monotonic() - started < 5.0
        assert len(store.curve(*ADAM, "loss")) == 1


def test_damaged_bytes_anywhere_are_refused_or_read(path: Path) -> None:
    """A store with random bytes overwritten raises StoreError or is read; nothing else comes out, nothing hangs."""
    writer = write(path, range(1, 2001))
    writer.add_event(an_event())
    writer.add_sample(a_sample("accuracy", 0.5, 1))
    writer.close()
    whole, source = path.read_bytes(), random.Random(0)
    num_refused = 0
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(source.choice((1, 20, 400))):
            damaged[source.randrange(len(damaged))] = source.randrange(256)
        path.write_bytes(damaged)
        try:
            read_all(path)
        except StoreError:
            num_refused += 1
    assert num_refused > 10


def test_a_store_is_read_from_a_folder_that_cannot_be_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that was left with its log, in a folder that is read-only, shows what was folded in."""
    from monitor.store import _database

    write(path, range(1, 11)).close()
    in_sql("PRAGMA journal_mode = WAL")(path)

    def refuse(path: Path, mode: str) -> sqlite3.Connection:
        if "immutable" not in mode:
            raise sqlite3.OperationalError("unable to open database file")
        return opened(path, mode)

    opened = _database._open_reading
    monkeypatch.setattr(_database, "_open_reading", refuse)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with StoreReader(path) as store:
        assert len(store.curve(*ADAM, "loss")) == 10


@pytest.mark.parametrize("points", [0, -1, 100_001])
def test_points_out_of_range_are_refused(points: int, path: Path) -> None:
    """A number of points that cannot be is the caller's mistake."""
    write(path, [1]).close()
    with (
        StoreReader(path) as store,
        pytest.raises(ValueError, match=f"points must be between 1 and 100000, got {points}"),
    ):
        store.curve(*ADAM, "loss", points=points)


def test_what_is_not_there_is_an_empty_answer(path: Path) -> None:
    """A curve, a column or a range that the store does not have has no points."""
    write(path, [1, 2]).close()
    with StoreReader(path) as store:
        assert store.curve("metric", "none") == []
        assert store.curve(*ADAM, "none") == []
        assert store.curve(*ADAM, "loss", first_step=5) == []
        assert store.curve(*ADAM, "loss", first_step=5, last_step=1) == []
        assert list(store.rows("metric", "none")) == []


# ------------------------------------------------------------------------------------------------ the writer's side


def test_a_writer_leaves_a_foreign_file_alone(path: Path) -> None:
    """A file that is no store is not written over: each commit says so, and what is dropped is counted."""
    path.write_bytes(b"somebody's work" * 1000)
    clock = Clock()
    writer = StoreWriter(path, counter=clock)
    writer.add_step(a_step(1))
    for _ in range(2):
        with pytest.raises(StoreError, match="is not a run store"):
            writer.commit()
        writer.commit()  # nothing is tried while the failure is recent
        clock.now += 10.0
    assert path.read_bytes() == b"somebody's work" * 1000
    with pytest.raises(StoreError, match="is not a run store"):
        writer.close()


def test_a_full_disk_costs_what_does_not_fit_and_no_more(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While there is no room each try is one StoreError; what waits beyond a bound is dropped and counted; with room
    again, the rest is written."""
    clock = Clock()
    writer = write(path, range(1, 101), counter=clock, max_bytes=2**21)
    opened = StoreWriter._open

    def open_full(self: StoreWriter) -> sqlite3.Connection:
        connection = opened(self)
        connection.execute("PRAGMA max_page_count = 1")  # SQLite's own error of a full disk: no page can be added
        return connection

    monkeypatch.setattr(StoreWriter, "_open", open_full)
    for step in range(101, 5001):
        writer.add_step(a_step(step))
        if step % 500 == 0:
            with pytest.raises(StoreError, match="database or disk is full"):
                writer.commit()
            clock.now += 10.0
    monkeypatch.undo()
    dropped = writer.num_dropped
    assert 0 < dropped < 4900
    writer.commit()
    writer.add_step(a_step(5001))
    writer.close()
    with StoreReader(path) as store:
        steps = [point.last_step for point in store.rows(*ADAM, "loss")]
        assert steps == [*range(1, 5001 - dropped), 5001]
        assert store.facts()["dropped"] == dropped


def test_a_folder_that_is_gone_is_reported_and_used_again(tmp_path: Path) -> None:
    """A folder that cannot be written is a StoreError; once it is there, what waited is written."""
    path, clock = tmp_path / "later" / "run.db", Clock()
    writer = StoreWriter(path, counter=clock)
    writer.add_step(a_step(1))
    with pytest.raises(StoreError, match="cannot be written"):
        writer.commit()
    path.parent.mkdir()
    assert not writer.is_due
    clock.now += 10.0
    assert writer.is_due
    writer.close()
    with StoreReader(path) as store:
        assert len(store.curve(*ADAM, "loss")) == 1


def test_a_store_that_is_removed_is_made_again(path: Path) -> None:
    """What is written after the file was removed is in a new one, not in the one that nobody can read."""
    writer = write(path, range(1, 11))
    for file in path.parent.iterdir():
        file.unlink()
    writer.add_step(a_step(11))
    writer.close()
    with StoreReader(path) as store:
        assert [point.last_step for point in store.curve(*ADAM, "loss")] == [11]


def test_a_second_writer_is_noticed(path: Path) -> None:
    """Two processes that write one store would spoil it: the one that notices says so and writes no more into it."""
    first = write(path, range(1, 11))
    write(path, range(11, 21)).close()
    first.add_step(a_step(21))
    with pytest.raises(StoreError, match="is written by another process too; one run has one writer"):
        first.commit()
    first.close()


class SlowClock:
    """A clock that goes on by ``pace`` seconds whenever it is looked at."""

    def __init__(self) -> None:
        self.now, self.pace, self.num_looks = 0.0, 0.0, 0

    def __call__(self) -> float:
        self.num_looks += 1
        self.now += self.pace
        return self.now


def test_a_question_has_its_time_and_one_for_several_columns_has_it_for_each(path: Path) -> None:
    """Reading gives up once its seconds are over, between two blocks."""
    write(path, range(1, 3001)).close()
    clock = SlowClock()
    with StoreReader(path, counter=clock) as store:
        whole = store.curve(*ADAM, "loss")
        clock.pace = 0.9 * SECONDS / clock.num_looks
        assert store.curve(*ADAM, "loss") == whole
        assert store.curves(*ADAM, ["loss"] * 3) == [whole] * 3
        clock.pace *= 4
        with pytest.raises(StoreError, match=re.escape(f"{path} did not answer within 10 s")):
            store.curve(*ADAM, "loss")


def test_an_error_of_our_own_is_a_store_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but StoreError comes out of a commit; records that may be the cause do not come again."""
    clock = Clock()
    writer = StoreWriter(path, counter=clock)
    writer.add_event(None)  # type: ignore[arg-type]
    writer.add_step(a_step(1))
    with pytest.raises(StoreError, match="cannot be written: AttributeError"):
        writer.commit()
    assert writer.num_dropped == 2
    clock.now += 10.0
    writer.add_step(a_step(2))
    writer.close()
    with StoreReader(path) as store:
        assert [point.last_step for point in store.curve(*ADAM, "loss")] == [2]
