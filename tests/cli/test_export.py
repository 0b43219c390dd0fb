"""``monitor export``: the store of a run, live or ended, into a file or a pipe."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from monitor.cli import main
from monitor.store import FORMATS, STORE_FILE, RunFolder, StoreWriter, export
from tests.requirements import need_module
from tests.store.made import START, a_step, an_event, write


def call(*words: str) -> Result:
    return CliRunner().invoke(main, ["export", *words], prog_name="monitor")


def make_run(run_id: str = "digits-3f9a0c") -> RunFolder:
    folder = RunFolder.create(None, run_id, name=run_id.rpartition("-")[0], start_time=START)
    folder.update(state="running")
    return folder


@pytest.fixture
def ended() -> Path:
    """The folder of a run that has ended, with ten steps and two events in its store."""
    folder = make_run()
    writer = write(folder.path / STORE_FILE, range(1, 11))
    writer.add_event(an_event(3))
    writer.add_event(an_event(7))
    writer.close()
    folder.finish("finished", end_time=START + 1)
    return folder.path


@pytest.fixture
def live() -> Iterator[StoreWriter]:
    """The writer of a run that is live, after ten steps."""
    writer = write(make_run("gpt-000001").path / STORE_FILE, range(1, 11))
    yield writer
    writer.close()


def exported(folder: Path, format_: Any = "csv", table: Any = "values") -> bytes:
    file = io.BytesIO()
    export(folder, format_, file, table)
    return file.getvalue()


@pytest.mark.parametrize("run", ["digits-3f9a0c", "digits", "dig", "digits-3"])
def test_a_run_is_named_as_in_the_other_commands(run: str, ended: Path) -> None:
    """An id, a name or a unique prefix finds the run; CSV of its values is the default."""
    done = call(run)
    assert done.exit_code == 0, done.output
    assert done.stdout_bytes == exported(ended)
    assert done.stdout_bytes.count(b"\n") > 100


def test_a_live_run_is_exported_up_to_its_last_commit(live: StoreWriter) -> None:
    """What has been committed is there while the writer has the file open; the next commit adds to it."""
    losses = [line for line in call("gpt").stdout.splitlines() if ",loss," in line]
    assert len(losses) == 10
    live.add_step(a_step(11))
    assert len([line for line in call("gpt").stdout.splitlines() if ",loss," in line]) == 10
    live.commit()
    assert len([line for line in call("gpt").stdout.splitlines() if ",loss," in line]) == 11


@pytest.mark.parametrize("format_", FORMATS)
def test_a_file_is_written_whole_or_not_at_all(format_: str, ended: Path, tmp_path: Path) -> None:
    """The file is there when all of it is; where the store turns out to be none, the old file stays as it was."""
    if format_ == "parquet":
        need_module("pyarrow")
    target = tmp_path / "out" / "events"
    target.parent.mkdir()
    words = ["digits", "--format", format_, "-o", str(target), "--table", "events"]
    done = call(*words)
    assert (done.exit_code, done.stderr) == (0, f"2 rows of digits-3f9a0c written to {target}\n")
    assert target.read_bytes() == exported(ended, format_, "events")
    (ended / STORE_FILE).write_bytes(b"no database")
    done = call(*words)
    assert (done.exit_code, list(target.parent.iterdir())) == (1, [target])
    assert f"{ended / STORE_FILE} is not a run store" in done.stderr
    assert target.stat().st_size > 100


def test_what_is_no_regular_file_is_written_to_and_stays(ended: Path, tmp_path: Path) -> None:
    """A pipe, like a device, takes the rows and is not replaced by a file; a link leads to the file that is written."""
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    try:
        assert call("digits", "--table", "events", "-o", str(pipe)).exit_code == 0
        assert os.read(reading, 2**16) == exported(ended, table="events")
    finally:
        os.close(reading)
    assert pipe.is_fifo()
    (tmp_path / "file").touch()
    link.symlink_to("file")
    assert call("digits", "-o", str(link)).exit_code == 0
    assert link.is_symlink()
    assert (tmp_path / "file").read_bytes() == exported(ended)


def test_a_run_without_a_store_says_so_and_why(tmp_path: Path) -> None:
    """The message names the run and the file, and differs for a run that may still make one."""
    folder = make_run("bare-000001")
    path = folder.path / STORE_FILE
    done = call("bare")
    assert done.exit_code == 1
    assert done.stderr.startswith(f"Error: bare-000001 has no store yet: there is no {path}. A run makes it within")
    folder.finish("finished", end_time=START + 1)
    done = call("bare", "-o", str(tmp_path / "out.csv"))
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith(f"Error: bare-000001 has no store: there is no {path}. Its monitor was an older one")
    assert "`monitor status bare-000001` shows its last state" in done.stderr
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["none"], 2, "there is no run 'none'; `monitor runs` lists those that are known"),
        (["di"], 2, "'di' is not unique; say which:"),
        (["digits", "--format", "parquet"], 2, "--format parquet needs a file to write; add --output FILE"),
        (["digits", "--format", "xlsx"], 2, "'xlsx' is not one of 'csv', 'jsonl', 'parquet'"),
        (["digits", "-o", "/none/a.csv"], 1, "/none/a.csv cannot be written (No such file or directory); name another"),
        ([], 2, "Missing argument 'RUN'"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(words: list[str], status: int, message: str, ended: Path) -> None:
    """Each refusal names the value and the remedy; nothing is written to standard output."""
    for name in ("different", "distinct"):
        make_run(f"{name}-000001")
    done = call(*words)
    assert (done.exit_code, done.stdout) == (status, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_has_seen_enough_ends_it_without_a_word(ended: Path) -> None:
    """`monitor export RUN | head -1` prints one line and no error."""
    write(ended / STORE_FILE, range(11, 3001)).close()
    command = f"{sys.executable} -m monitor export digits | head -1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_standard_output_is_an_error(ended: Path) -> None:
    """What could not be written is told."""
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "monitor", "export", "digits", "--table", "events"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode  # Python tries once more at its exit, and tells of that too
    assert done.stderr.startswith("Error: standard output cannot be written (No space left on device); name another")
