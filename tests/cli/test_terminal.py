"""Whatever a run, a folder, a file or a server says, no command lets it steer the terminal."""

from __future__ import annotations

import ast
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import click.testing
import pytest
from click.testing import CliRunner, Result

from monitor.cli import _terminal
from monitor.cli._main import main
from monitor.cli._screen import Frame
from monitor.common import one_line, printable
from monitor.run._log import make_visible
from monitor.server import HttpServer, Security, create_app, run_document
from monitor.store import RunFolder, StoreWriter
from tests.cli.proving import announce, serving_in
from tests.cli.test_top import drawn, frame_of
from tests.foreign import HOSTILE, give_away
from tests.server.fake_run import TOKEN, FakeRun
from tests.store.made import a_sample, a_step, an_event

CLI = Path(_terminal.__file__).parent


def hostile(value: Any) -> Any:
    """Return a document with hostile text in every string and behind every name that a run chooses."""
    if isinstance(value, str):
        return value + HOSTILE
    if isinstance(value, list):
        return [hostile(item) for item in value]
    if isinstance(value, dict):
        chosen = {"metrics", "validation_losses", "events_active", "events_total", "errors"}
        return {
            key: {name + HOSTILE: hostile(item) for name, item in one.items()}
            if key in chosen and one
            else hostile(one)
            for key, one in value.items()
        }
    return value


def hostile_app(app: Callable[..., Any]) -> Callable[..., Any]:
    """Return an application whose every JSON answer is hostile."""

    def answer(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        given: list[Any] = []
        body = b"".join(app(environ, lambda *words: given.extend(words)))
        if b"json" in dict(given[1])["Content-Type"].encode():
            body = json.dumps(hostile(json.loads(body))).encode()
        headers = [(name, value) for name, value in given[1] if name != "Content-Length"]
        start_response(given[0], [*headers, ("Content-Length", str(len(body)))])
        return [body]

    return answer


def made(run_id: str, **changes: Any) -> RunFolder:
    """Return the folder of a run that has a hostile name and script."""
    given = {"name": f"name{HOSTILE}", "script": f"train{HOSTILE}.py", "start_time": 1.0, "token": TOKEN, **changes}
    return RunFolder.create(None, run_id, **given)


def a_run() -> FakeRun:
    run = FakeRun()
    run.advance(300)
    run.publish("spike", "warning", "loss 9")
    return run


def plain(value: Any) -> Any:
    """Return a document as it comes out of JSON."""
    return json.loads(json.dumps(value))


@pytest.fixture
def root() -> Iterator[Path]:
    """Return the runs directory: a live run, one that is over, and two that others may have written."""
    live, over = made("live-000001"), made("over-000002")
    announce(live, "http://127.0.0.1:9")
    with closing(StoreWriter(over.path / "run.db")) as store:
        store.add_step(a_step(1), loss_ema=1.0, time=1.0)
        store.add_sample(a_sample(f"accuracy{HOSTILE}", 0.5, 1), time=1.0)
        store.add_event(replace(an_event(), message=f"spike{HOSTILE}"))
    last = hostile(plain(run_document(a_run().snapshot())))
    over.finish("failed", end_time=2.0, final={**last, "state": "failed"})
    for name in (f"odd{HOSTILE}-000003", "bad-000004"):
        path = live.path.with_name(name)
        path.mkdir()
        (path / "run.json").write_text(json.dumps({"run_id": name, "state": "running"}))
        path.chmod(0o777)
    with serving_in(live, hostile_app(create_app(a_run(), Security(token=TOKEN)))):
        yield live.path.parent


def call(*words: str) -> Result:
    return CliRunner().invoke(main, list(words), prog_name="monitor")


def is_harmless(text: str) -> bool:
    return all(character.isprintable() for character in text.replace("\n", ""))


COMMANDS = (
    ("runs",),
    ("runs", "--json"),
    ("status", "live"),
    ("status", "live", "--json"),
    ("status", "over"),
    ("status", "over", "--json"),
    ("status", f"none{HOSTILE}"),
    ("status", "--url", f"http://{HOSTILE}"),
    ("status", "--dir", f"/nowhere{HOSTILE}"),
    ("lr", "live"),
    ("lr", "live", "reduce", "0.5", "--no-wait", "--reason", HOSTILE),
    ("lr", "live", "reduce", "7"),
    ("lr", f"live{HOSTILE}", "reduce", "7"),
    ("lr", "live", f"--{HOSTILE}"),
    ("pause", "live", "--no-wait"),
    ("checkpoint", "live", "--no-wait"),
    ("top", "over"),
    ("top", "live"),
    ("open", "live"),
    ("export", "live"),
    ("export", "over", "-o", f"/nowhere{HOSTILE}/file"),
    ("export", "over", "--format", HOSTILE),
    ("runs", "rm", "live"),
    ("runs", "rm", f"x{HOSTILE}"),
    ("runs", "rm", "--keep", "0", "--dry-run"),
    ("replay", f"/nowhere{HOSTILE}"),
    ("dashboards", "export", f"/dev/null/{HOSTILE}"),
    ("dashboards", "publish", "--grafana", f"http://{HOSTILE}"),
    (HOSTILE,),
)


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words).encode("unicode_escape").decode()[:60])
def test_no_output_steers_the_terminal(words: tuple[str, ...]) -> None:
    """Names, reasons, messages, addresses, paths: on both outputs they are text, with question marks."""
    result = call(*words)
    assert isinstance(result.exception, SystemExit | None), result.exception
    assert result.output.strip()
    assert is_harmless(result.stdout)
    assert is_harmless(result.stderr)


@pytest.mark.usefixtures("root")
def test_what_is_hostile_does_arrive() -> None:
    """The tests above would fail without the rule: the text is there, its signs are question marks."""
    shown = one_line(HOSTILE)
    assert f"running{shown}" in call("runs").stdout
    assert call("status", "live").stdout.count(shown) > 3
    assert f"odd{shown}" not in call("runs").stdout
    assert json.loads(call("status", "live", "--json").stdout)["state"] == f"running{HOSTILE}"


@pytest.mark.usefixtures("root")
def test_what_is_passed_over_is_told_in_one_line() -> None:
    """Each listing says on standard error how much it passed over, and of the first why."""
    for words in (("runs",), ("status", "over"), ("runs", "rm", "--keep", "99")):
        (line,) = call(*words).stderr.splitlines()
        assert line.startswith("passed over 2 run folders, the first: ")
        assert "/bad-000004 can be written by others (mode 0777); `chmod go-w " in line


def test_an_export_is_cleaned_on_a_terminal_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is printed on a terminal steers nothing; what goes into a pipe or a file is what was stored."""
    words = ("export", "over", "--table", "events")
    piped = call(*words).stdout
    monkeypatch.setattr(click.testing._NamedTextIOWrapper, "isatty", lambda _: True, raising=False)
    shown = call(*words).stdout
    assert HOSTILE in piped
    assert is_harmless(shown)
    assert shown == printable(piped)


def test_a_spoilt_file_of_one_run_is_told_and_hides_none(root: Path) -> None:
    """A token or a last state that may not be read costs its own run: a row without figures, or one clear refusal."""
    (root / "live-000001" / "socket").unlink()  # the way that needs no token
    (root / "live-000001" / "token").chmod(0o666)
    (root / "over-000002" / "final.json").chmod(0o666)
    runs = call("runs")
    assert [line.split()[0] for line in runs.stdout.splitlines()] == ["RUN", "live-000001", "over-000002"]
    assert runs.stderr.splitlines()[1].startswith("passed over 2 files, the first: ")
    for words, name in (
        (("status", "live"), "token"),
        (("status", "over"), "final.json"),
        (("open", "over"), "final.json"),
    ):
        result = call(*words)
        assert (result.exit_code, f"/{name} can be written by others (mode 0666)" in result.stderr) == (1, True)
        assert len(result.stderr.splitlines()) == 2


def test_a_secret_behind_a_link_is_sent_to_nobody(tmp_path: Path) -> None:
    """A planted folder whose token leads to a one-line secret of the user sends it nowhere."""
    seen: list[str | None] = []

    def trap(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen.append(environ.get("HTTP_AUTHORIZATION"))
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", "2")])
        return [b"{}"]

    (tmp_path / "secret").write_text("secret-of-the-user\n")
    with HttpServer(trap, port=0) as trapping:
        planted = made("planted-000009", token=None)
        announce(planted, trapping.url)
        (planted.path / "token").symlink_to(tmp_path / "secret")
        for words in (("runs",), ("status", "planted"), ("lr", "planted"), ("status", "--url", trapping.url)):
            call(*words)
        give_away(planted.path)
        for words in (("runs",), ("status", "planted"), ("lr", "planted")):
            call(*words)
    assert seen == []


def test_the_screen_is_harmless() -> None:
    """The one screen of `monitor top`, of a run that is hostile in every word."""
    frame = frame_of(a_run())
    text = drawn(
        Frame(*map(hostile, plain([frame.run, frame.history, list(frame.events)]))),
        url=f"http://x{HOSTILE}",
        note=HOSTILE,
    )
    assert one_line(HOSTILE) in text
    assert is_harmless(text)


def test_no_command_prints_by_itself() -> None:
    """Only one module of the command line writes to the terminal, `monitor top` by rich apart."""
    found = {
        path.name
        for path in CLI.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in {"click.echo", "click.secho", "print", "sys.stdout.write"}
    }
    assert found == {"_terminal.py"}


def test_no_line_of_the_log_steers_the_terminal(caplog: pytest.LogCaptureFixture) -> None:
    """Message and traceback of a record are cleaned before any handler has it; a clean record stays as it is."""
    make_visible()
    log = logging.getLogger("monitor")
    with caplog.at_level(logging.INFO, "monitor"):
        try:
            raise ValueError(HOSTILE)
        except ValueError:
            log.exception("%s failed", f"run{HOSTILE}")
        log.info("%s", "two\nlines of é")
    assert is_harmless(caplog.text)
    assert one_line(HOSTILE) in caplog.text
    assert (caplog.records[1].msg, caplog.records[1].args) == ("%s", ("two\nlines of é",))
