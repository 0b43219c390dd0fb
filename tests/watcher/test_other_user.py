"""What another login user of the same machine can read and do is what docs/security.md says, and no more."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import monitor
from tests.other_user import as_nobody
from tests.requirements import need_root
from tests.watcher.test_process import wait_for, watcher_of

TOKEN, READ_TOKEN = "control-token-of-the-owner", "read-token-of-the-owner"


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runs directory that everybody may enter: the owner has made it so, for Prometheus."""
    need_root()
    home = Path(tempfile.mkdtemp(prefix="monitor-", dir="/tmp"))
    home.chmod(0o755)
    root = home / "runs"
    root.mkdir()
    root.chmod(0o755)
    monkeypatch.setenv("MONITOR_DIR", str(root))
    monkeypatch.setenv("MONITOR_STORE_BYTES", str(2**22))
    yield root
    shutil.rmtree(home)


@contextmanager
def trained(**settings: Any) -> Iterator[monitor.Run]:
    """A run of this user that has made some steps."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    given = {"watcher": "process", "port": 0, "gpu": False, "linger": 0, "token": TOKEN, "read_token": READ_TOKEN}
    with monitor.attach(optimizer, **{**given, **settings}) as run:
        for _ in range(5):
            optimizer.param_groups[0]["params"][0].square().sum().backward()
            optimizer.step()
        assert run.flush(60)
        assert run.url
        yield run


def test_no_file_of_a_run_can_be_read_or_written(runs: Path) -> None:
    """Neither the folder nor what lies in it; the targets can be read, and hold name and address alone."""
    with trained() as run:
        folder = runs / run.id
        wait_for((folder / "run.db").exists, "the store")
        files = sorted(path.name for path in folder.iterdir())
        assert {"run.json", "token", "read_token", "run.db", "watcher.log"} <= set(files)
        target = runs / "targets" / f"{run.id}.json"
        kept = [("read", str(path)) for path in (folder, *(folder / name for name in files))]
        kept += [("write", str(path)) for path in (folder, *(folder / name for name in files), target, target.parent)]
        *refused, content = as_nobody(*kept, ("read", str(target)))
        assert set(refused) == {"PermissionError"}
    assert run.name in content
    assert TOKEN not in content
    assert READ_TOKEN not in content


def test_a_runs_directory_that_was_made_by_a_run_lets_nobody_in(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default others find not even the names."""
    monkeypatch.setenv("MONITOR_DIR", str(runs / "made"))
    with trained():
        names = ("read", str(runs / "made")), ("read", str(runs / "made" / "targets"))
        assert as_nobody(*names) == ["PermissionError"] * 2


def test_the_commands_show_nothing_and_say_why(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a folder that may not be read, and of a runs directory that may not."""
    with trained() as run:
        words = "command", "runs", "--dir", str(runs)
        found, changed = as_nobody(words, ("command", "lr", run.id, "reduce", "0.5", "--dir", str(runs)))
        assert (found["status"], run.id in found["out"]) == (0, False)
        assert f"passed over: {runs / run.id} cannot be read by this user" in found["err"]
        assert changed["status"] != 0
        runs.chmod(0o700)
        (found,) = as_nobody(words)
        assert f"passed over: {runs} cannot be read by this user" in found["err"]


@pytest.mark.parametrize(("protects", "seen"), [(False, 200), (True, 401)])
def test_of_the_server_the_metrics_alone_are_open(runs: Path, protects: bool, seen: int) -> None:
    """And those too ask for the token where the run says so; nothing is changed."""
    with trained(protect_metrics=protects) as run:
        assert as_nobody(*(("ask", "GET", f"{run.url}/{path}") for path in ("metrics", "healthz"))) == [seen, seen]
        shown = [("ask", "GET", f"{run.url}/api/v1/{path}") for path in ("run", "history", "events", "lr", "targets")]
        changes = ("lr/reduce", "lr/restore", "pause", "stop", "checkpoint", "alertmanager")
        shown += [("ask", "POST", f"{run.url}/api/v1/{path}") for path in changes]
        assert set(as_nobody(*shown)) == {401}
        assert run.lr[0].factor == 1.0
        assert not run.should_stop


def test_neither_process_can_be_signalled_or_looked_into(runs: Path) -> None:
    """The arguments can be seen by all, as those of any process, and hold no secret."""
    with trained() as run:
        watcher = watcher_of(run)
        *found, arguments = as_nobody(
            ("interfere", watcher.pid), ("interfere", os.getpid()), ("read", f"/proc/{watcher.pid}/cmdline")
        )
        for tried in found:
            assert set(tried.values()) == {"PermissionError", "Operation not permitted"}, tried
        assert run.id in arguments
        assert TOKEN not in arguments
        assert watcher.is_running()


def test_the_port_of_the_ranks_wants_the_secret(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection is made, a nonce is sent, and nothing follows."""
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    with monitor.attach(optimizer, watcher="process", port=0, gpu=False, linger=0) as run:
        assert run.url
        place = run._engine._place()
        assert place["secret"]
        assert as_nobody(("call_as_rank", place["port"])) == [0]
