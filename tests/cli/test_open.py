"""``monitor open``: the page of a run, live or over."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner, Result

from monitor.cli import main
from monitor.server import HttpServer, Security, create_app, run_document
from monitor.store import STORE_FILE, RunFolder
from tests.cli.proving import announce, serving_in
from tests.server.fake_run import TOKEN, FakeRun
from tests.store.made import START, an_event, write


def call(*words: str) -> Result:
    return CliRunner().invoke(main, ["open", *words], prog_name="monitor")


def make_run(run_id: str = "digits-3f9a0c") -> RunFolder:
    return RunFolder.create(None, run_id, name=run_id.rpartition("-")[0], start_time=START, token="t" * 20)


def final_of(run_id: str) -> dict[str, Any]:
    snapshot = FakeRun().snapshot()
    return run_document(replace(snapshot, state="finished", run=replace(snapshot.run, run_id=run_id)))


@pytest.fixture
def ended() -> RunFolder:
    """A run that has ended, with 300 steps and an event in its store."""
    folder = make_run()
    writer = write(folder.path / STORE_FILE, range(1, 301))
    writer.add_event(replace(an_event(3), seq=1))
    writer.close()
    folder.finish("finished", end_time=START + 1, final=final_of("digits-3f9a0c"))
    return folder


def ask(address: str, path: str, body: Any = None) -> Any:
    parts = urlsplit(address)
    token = parts.query.removeprefix("token=")
    request = urllib.request.Request(
        f"{parts.scheme}://{parts.netloc}{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_the_page_of_a_run_that_is_over_is_served_until_ctrl_c(ended: RunFolder) -> None:
    """One command gives an address on this machine alone; Ctrl-C ends it with status 0. torch is never imported."""
    code = (
        "import sys; from monitor.cli import main\n"
        "try: main(['open', 'digits'])\n"
        "finally: print([name for name in sys.modules if name == 'torch'], flush=True)"
    )
    with subprocess.Popen([sys.executable, "-uc", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        address = re.fullmatch(r"digits-3f9a0c is over \(finished\); its page, until Ctrl-C: (http://\S+)\n", line)
        assert address is not None, line
        assert urlsplit(address[1]).hostname == "127.0.0.1"
        assert ask(address[1], "/api/v1/run")["state"] == "finished"
        assert ask(address[1], "/api/v1/history")["next"] == 300
        assert [event["kind"] for event in ask(address[1], "/api/v1/events")["events"]] == [an_event().kind]
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(address[1], "/api/v1/lr/reduce", {"factor": 0.5})
        refused.value.close()
        assert refused.value.code == 409
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == "[]\n"
    assert process.returncode == 0


def status_of(address: str) -> int:
    cookies = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    try:
        with cookies.open(address, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_of_a_live_run_an_address_is_given_that_logs_in_once() -> None:
    """A live run has a page of its own."""
    folder = make_run()
    app = create_app(FakeRun(), Security(token=TOKEN))
    with serving_in(folder, app), HttpServer(app, port=0) as server:
        announce(folder, server.url)
        done = call("digits")
        assert (done.exit_code, done.output.startswith(f"{server.url}/?code=")) == (0, True)
        for status in (200, 401):  # at its second use it is none any more
            assert status_of(done.output.strip()) == status


def test_refusals_say_why(ended: RunFolder) -> None:
    """A run that is not served, left nothing or is not known is refused with one line."""
    make_run("quiet-000001").update(state="running")
    make_run("empty-000001").finish("failed", end_time=2.0)
    assert call("quiet").stderr == (
        "Error: quiet-000001 serves no HTTP: attached with serve=False, or no port was free\n"
    )
    assert call("empty").stderr == "Error: empty-000001 is failed and left no last state behind\n"
    assert call("none").exit_code == 2
