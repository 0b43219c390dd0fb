"""Whatever lies in the folder of one run, every command ends with a status and a line, and hides or harms no other."""

from __future__ import annotations

import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from monitor._errors import MonitorError
from monitor.cli._main import main
from monitor.server import Security, create_app
from monitor.store import KnownRun, RunFolder, StoreWriter, UntrustedError, list_runs, prune
from monitor.store._known import read_run
from monitor.watcher import EndedRun
from tests.fuzz.effort import ANYTHING, damaged, tried
from tests.fuzz.test_states import STATE, places, spoilt
from tests.server.fake_run import TOKEN
from tests.server.wire import READ
from tests.store.made import a_sample, a_step, an_event

GOOD, BAD = "good-000001", "bad-000001"
COMMANDS = (
    ("runs",),
    ("runs", "--json"),
    ("status",),
    ("status", BAD),
    ("status", BAD, "--json"),
    ("top", BAD),
    ("lr", BAD),
    ("export", BAD),
    ("export", BAD, "--table", "events", "--format", "jsonl"),
    ("runs", "rm", BAD),
    ("runs", "rm", "--keep", "0", "--dry-run"),
)
FILES = ("run.json", "last.json", "final.json", "token", "read_token", "run.db", "run.db-wal", "watcher.log", "lock")
PATHS = ("/api/v1/run", "/api/v1/history", "/api/v1/events", "/api/v1/lr", "/api/v1/commands/x", "/metrics", "/healthz")


def make_template(root: Path) -> None:
    """Make two runs that are over, each with all that a run leaves."""
    for run_id in (GOOD, BAD):
        folder = RunFolder.create(root, run_id, name=run_id[:-7], start_time=1.0, token=TOKEN, read_token="r" * 32)
        folder.update(state="running", url="http://127.0.0.1:9/")
        writer = StoreWriter(folder.path / "run.db")
        for step in range(1, 300):
            writer.add_step(a_step(step))
        writer.add_sample(a_sample("accuracy", 0.5, 1))
        writer.add_event(an_event())
        writer.close()
        folder.finish("finished", end_time=2.0, final=STATE)
        shutil.copy(folder.path / "final.json", folder.path / "last.json")


@functools.cache
def template() -> tempfile.TemporaryDirectory[str]:
    """Return a folder with the two runs, which lasts as long as this process."""
    found = tempfile.TemporaryDirectory()
    make_template(Path(found.name))
    return found


def link(path: Path) -> None:
    path.symlink_to(path.parents[2] / "secret")


def hard_link(path: Path) -> None:
    os.link(path.parents[2] / "secret", path)


def folder(path: Path) -> None:
    path.mkdir()
    (path / "inside").write_text("kept")


def open_to_all(path: Path) -> None:
    path.write_text("{}")
    path.chmod(0o666)


def huge(path: Path) -> None:
    path.touch(0o600)
    os.truncate(path, 2**33)


KINDS: tuple[Callable[[Path], object], ...] = (link, hard_link, os.mkfifo, folder, open_to_all, huge)
WHOLE = json.dumps({"run_id": BAD, "name": "bad", "pid": 1, "hostname": "h", "state": "failed", "start_time": 1.0})
TEXTS = (
    st.binary(max_size=200)
    | ANYTHING.map(json.dumps).map(str.encode)
    | st.builds(spoilt, st.sampled_from(places(STATE)), ANYTHING).map(json.dumps).map(str.encode)
    | st.dictionaries(st.sampled_from(list(json.loads(WHOLE))), ANYTHING, max_size=3).map(
        lambda changes: json.dumps({**json.loads(WHOLE), **changes}).encode()
    )
    | st.sampled_from(
        [b"[" * 60_000, b'{"a":' * 10_000, b"\0" * 70_000, b"9" * 60_000, b'{"pid": ' + b"9" * 9000 + b"}"]
    )
)
DAMAGE = st.dictionaries(
    st.sampled_from(FILES), TEXTS | st.sampled_from(KINDS) | st.integers(0, 2**32), min_size=1, max_size=3
)
"""For some files: other bytes, another kind of file, or a seed to damage what is there."""


@contextmanager
def runs_with(damage: dict[str, Any], data: st.DataObject) -> Iterator[Path]:
    """Copy the two runs, and damage files of the bad one; see that nothing outside of its folder is changed."""
    with tempfile.TemporaryDirectory() as home:
        root = Path(home) / "runs"
        shutil.copytree(template().name, root)
        root.chmod(0o700)
        secret = Path(home) / "secret"
        secret.write_text("untouched")
        for name, how in damage.items():
            path = root / BAD / name
            whole = path.read_bytes() if path.exists() else b"whole"
            path.unlink(missing_ok=True)
            if callable(how):
                how(path)
            else:
                path.write_bytes(how if isinstance(how, bytes) else data.draw(damaged(whole)))
        yield root
        assert secret.read_text() == "untouched"


@tried(12)
@given(DAMAGE, st.data())
def test_every_command_ends_with_a_status_and_shows_the_other_run(damage: dict[str, Any], data: st.DataObject) -> None:
    """No traceback, no control code, no file outside of the folder touched."""
    with runs_with(damage, data) as root:
        for words in COMMANDS:
            result = CliRunner().invoke(main, [*words, "--dir", str(root)], prog_name="monitor")
            assert isinstance(result.exception, SystemExit | None), (words, result.exception)
            assert words != ("runs",) or GOOD in result.stdout
            assert result.output.replace("\n", "").replace("\t", "").isprintable() or words[0] == "export"
            assert "untouched" not in result.output


@tried(60)
@given(DAMAGE, st.data())
def test_what_reads_a_folder_returns_or_refuses(damage: dict[str, Any], data: st.DataObject) -> None:
    """The functions below the commands: a run or None, a token that a header can carry, a last state or a refusal."""
    with runs_with(damage, data) as root:
        refused: list[UntrustedError] = []
        assert GOOD in {run.run_id for run in list_runs(root, on_refused=refused.append)}
        for ask in (read_bad, read_token, read_final):
            with named_if_refused():
                ask(root)


@contextmanager
def named_if_refused() -> Iterator[None]:
    try:
        yield
    except UntrustedError as error:
        if BAD not in str(error):
            raise AssertionError("a refusal names the file") from error


def read_bad(root: Path) -> KnownRun | None:
    return read_run(root / BAD)


def read_token(root: Path) -> None:
    run = read_bad(root)
    token = run.read_token() if run else None
    assert token is None or (token.isascii() and token.isprintable())


def read_final(root: Path) -> None:
    run = read_bad(root)
    assert not isinstance(run.read_final() if run else None, str)


@tried(25)
@given(DAMAGE, st.data())
def test_the_page_of_a_run_that_is_over_answers(damage: dict[str, Any], data: st.DataObject) -> None:
    """What `monitor open` serves: every path has an answer of JSON or metrics, or the run is refused at once."""
    with runs_with(damage, data) as root:
        errors: list[BaseException] = []
        try:
            run = read_bad(root)
            if run is None:
                return
            ended = EndedRun(run)
        except (MonitorError, OSError):
            return
        client = create_app(
            ended, Security(token=TOKEN, read_token=READ["Authorization"][7:]), on_error=errors.append
        ).test_client()
        for path in PATHS:
            answer = client.get(path, headers=READ)
            assert answer.status_code in (200, 404, 500, 503), (path, answer.data)
            assert answer.status_code != 500 or isinstance(errors.pop(), MonitorError | OSError)


TARGETS = st.dictionaries(
    st.sampled_from([f"{BAD}.json", f"{GOOD}.json", "x.json", "..json", ".json", "a b.json", "x.txt"]),
    TEXTS | st.sampled_from(KINDS),
    max_size=4,
)


@tried(40)
@given(TARGETS, DAMAGE, st.data())
def test_clean_up_meets_anything(targets: dict[str, Any], damage: dict[str, Any], data: st.DataObject) -> None:
    """The start of a run sweeps targets and removes old runs, whatever lies there."""
    with runs_with(damage, data) as root:
        for name, how in targets.items():
            path = root / "targets" / name
            path.unlink(missing_ok=True)
            how(path) if callable(how) else path.write_bytes(how)
        prune(root, keep=1)
