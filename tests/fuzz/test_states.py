"""Whatever stands in the files of one run, the commands answer, and hide no other run."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from monitor.cli._main import main
from monitor.server import run_document
from monitor.store import RunFolder
from tests.fuzz.effort import ANYTHING, tried
from tests.server.fake_run import FakeRun

FIELDS = ("name", "pid", "hostname", "start_time", "end_time", "url", "script", "process_start", "rank", "world_size")
COMMANDS = (("runs",), ("runs", "--json"), ("status", "bad"), ("status",), ("top", "bad"), ("export", "bad"))


def last_state() -> dict[str, Any]:
    run = FakeRun()
    run.advance(300)
    run.publish("spike", "warning", "loss 9")
    document: dict[str, Any] = json.loads(json.dumps(run_document(run.snapshot())))
    return document


STATE = last_state()


def places(document: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the way to each value of a document."""
    pairs = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    return [one for key, value in pairs for one in ((*above, key), *places(value, (*above, key)))]


def spoilt(place: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """Return the last state with another value at a place."""
    document: dict[str, Any] = json.loads(json.dumps(STATE))
    owner: Any = document
    for key in place[:-1]:
        owner = owner[key]
    owner[place[-1]] = value
    return document


@tried(40)
@given(
    st.dictionaries(st.sampled_from(FIELDS), ANYTHING, max_size=3),
    st.sampled_from(["finished", "running", "vanished"]),
    st.builds(spoilt, st.sampled_from(places(STATE)), ANYTHING),
)
def test_a_spoilt_run_hides_no_other(changes: dict[str, Any], state: str, document: dict[str, Any]) -> None:
    """Each command ends with a status of its own, and the other run is in the list."""
    with tempfile.TemporaryDirectory() as root:
        for name in ("good", "bad"):
            folder = RunFolder.create(root, f"{name}-000001", name=name, start_time=1.0)
            folder.finish("finished", end_time=2.0, final=STATE)
        content = json.loads((folder.path / "run.json").read_text())
        (folder.path / "run.json").write_text(json.dumps({**content, "state": state, **changes}))
        for file in ("final.json", "last.json"):
            Path(folder.path / file).write_text(json.dumps(document))
        for words in COMMANDS:
            result = CliRunner().invoke(main, [*words, "--dir", root], prog_name="monitor")
            assert isinstance(result.exception, SystemExit | None), (words, result.exception)
            assert words[0] != "runs" or "good-000001" in result.stdout
