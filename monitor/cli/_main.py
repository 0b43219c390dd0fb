"""The command line: the group of all commands, and those that read a run and change its learning rate.

Exit status: 0 done, 1 failed or rejected, 2 usage.
"""

from __future__ import annotations

import importlib
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import click

from monitor._version import __version__
from monitor.cli import _format
from monitor.cli._client import Client, ClientError
from monitor.cli._reach import Access, reaching
from monitor.cli._stall import stall_lines
from monitor.cli._terminal import cleaned, echo, echo_json, known_runs, tell_refused
from monitor.common import keep_printable
from monitor.store import KnownRun, NoHomeError, UntrustedError, without_parts

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_LR_VERBS = ("reduce", "set", "restore", "undo")
_QUICK_SECONDS = 2.0


class _Lazy(click.Group):
    """A group that imports what it does not hold itself only when asked: the other commands start without it."""

    elsewhere: Mapping[str, str] = {
        "dashboards": "monitor.cli._dashboards:dashboards",
        "demo": "monitor.cli._demo:demo",
        "export": "monitor.cli._export:export_run",
        "open": "monitor.cli._open:open_run",
        "replay": "monitor.cli._replay:replay",
        "run": "monitor.cli._run:run",
        "top": "monitor.cli._top:top",
    }

    def invoke(self, ctx: click.Context) -> Any:
        keep_printable(logging.getLogger("monitor"))
        try:
            return super().invoke(ctx)
        except (NoHomeError, UntrustedError) as error:
            raise cleaned(click.ClickException(str(error))) from error
        except click.ClickException as error:
            raise cleaned(error) from error.__cause__

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *self.elsewhere])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.elsewhere:
            return super().get_command(ctx, cmd_name)
        module, _, name = self.elsewhere[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="monitor")
def main() -> None:
    """Run training scripts under the monitor, look at runs, and change their learning rate while they run.

    RUN is an id, a name or a unique prefix of either; without it, the only live run.
    """


class _Runs(_Lazy):
    elsewhere: Mapping[str, str] = {"rm": "monitor.cli._remove:remove"}


@main.group(cls=_Runs, invoke_without_command=True)
@click.option("-n", "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Print the newest N.")
@click.option("--all", "with_parts", is_flag=True, help="Also the ranks whose steps another run shows.")
@reaching
@_JSON
@click.pass_context
def runs(ctx: click.Context, access: Access, limit: int, with_parts: bool, as_json: bool) -> None:
    """List the runs known on this machine, newest last."""
    if ctx.invoked_subcommand is not None:
        return
    refused: list[UntrustedError] = []
    known = known_runs(access.directory)
    shown = (known if with_parts else without_parts(known))[-limit:]
    summaries = [_summarise(access, run, refused.append) for run in shown]
    if as_json:
        echo_json(summaries)
    elif summaries:
        echo(*_format.runs_table(summaries, time.time()))
    else:
        echo("no run is known here; `monitor demo` makes one")
    tell_refused(refused, "files")


def _summarise(access: Access, run: KnownRun, on_refused: Callable[[UntrustedError], object]) -> dict[str, Any]:
    try:
        return _summary(access, run)
    except UntrustedError as error:
        on_refused(error)
        return _format.summary(None, asdict(run))


def _summary(access: Access, run: KnownRun) -> dict[str, Any]:
    known = asdict(run)
    if not run.is_live or not run.url:
        final = run.read_final()
        whole = final if final and _format.is_whole(final) else None
        return _format.summary(whole, {**known, "url": run.url if run.is_live else None})
    try:
        live = access.client(run.url, run, _QUICK_SECONDS).get("/run")
    except ClientError:
        live = {}
    if not _format.is_whole(live):
        return _format.summary(None, {**known, "state": f"{run.state}, no answer"})
    return _format.summary(live, {**known, "state": live["state"]})


@main.command()
@click.argument("run", required=False)
@reaching
@_JSON
def status(access: Access, run: str | None, as_json: bool) -> None:
    """Show one run in full; of an ended one, its last state."""
    known, client = access.find(run, live_only=False)
    document = client.get("/run") if client else known.read_final() if known else None
    if document is None:
        raise ClientError(f"{known.run_id} is {known.state} and left no last state behind" if known else "no run")
    document.pop("page", None)  # the live page's own business
    if as_json:
        echo_json(document)
    elif not _format.is_whole(document):
        raise ClientError("the state that was found is not one of a run, or lacks parts; --json prints what there is")
    else:
        lines = _format.status(document, client.url if client else None, time.time())
        echo(*lines, *stall_lines(document, known, client))


_GROUP_HELP = "Index or name of a param group, an optimizer, or OPTIMIZER/INDEX; repeat for more."


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("words", nargs=-1, metavar="[RUN] [reduce F | set F | restore | undo]")
@click.option("--group", "groups", multiple=True, metavar="G", help=_GROUP_HELP)
@click.option("--over-steps", type=click.IntRange(min=0), default=None, help="Get there geometrically over N steps.")
@click.option("--reason", default="", help="Kept with the command in the run's events.")
@click.option("--wait/--no-wait", default=True, help="Wait until a step has applied it (default), or only send it.")
@reaching
@_JSON
def lr(
    access: Access,
    words: tuple[str, ...],
    groups: tuple[str, ...],
    over_steps: int | None,
    reason: str,
    wait: bool,
    as_json: bool,
) -> None:
    """Change the learning rate of a live run, or show it.

    \b
    monitor lr                     show it
    monitor lr reduce 0.5          multiply the factor in force by 0.5
    monitor lr RUN set 0.25        set the factor to 0.25 of the schedule
    monitor lr RUN restore         back to the schedule
    monitor lr RUN undo            take the last change back

    The schedule itself continues untouched: applied = factor x scheduled.
    """
    run, verb, factor = _parse_lr(words)
    given = {"groups": [_group(group) for group in groups] or None, "over_steps": over_steps, "reason": reason or None}
    body = {name: value for name, value in {"factor": factor, **given}.items() if value is not None}
    if unfit := set(body) - _FIELDS[verb]:
        names = ", ".join(f"--{name.replace('groups', 'group').replace('_', '-')}" for name in sorted(unfit))
        raise click.UsageError(f"{names} means nothing to {verb or 'showing the learning rate'}")
    client, name = access.live(run)
    if verb is None:
        answer = client.get("/lr")
        if as_json:
            echo_json(answer)
        else:
            waiting = [f"{len(answer['pending'])} commands wait for the next step"] if answer["pending"] else []
            echo(*(_format.lr_table(answer["groups"]) or ["no step has been made yet"]), *waiting)
        return
    _command(client, name, verb, body, wait, as_json)


_FIELDS: dict[str | None, set[str]] = {
    "reduce": {"factor", "groups", "over_steps", "reason"},
    "set": {"factor", "groups", "over_steps", "reason"},
    "restore": {"groups", "over_steps", "reason"},
    "undo": {"reason"},
    None: set(),
}


def _parse_lr(words: tuple[str, ...]) -> tuple[str | None, str | None, float | None]:
    """Return run, verb and factor. A run may even be called like a verb: then it is followed by one."""
    for word in words:
        if word.startswith("-") and not _is_number(word):
            raise click.NoSuchOption(word)
    has_run = len(words) > 0 and (words[0] not in _LR_VERBS or (len(words) > 1 and words[1] in _LR_VERBS))
    run, rest = (words[0], words[1:]) if has_run else (None, words)
    if not rest:
        return run, None, None
    verb, values = rest[0], rest[1:]
    if verb not in _LR_VERBS:
        raise click.UsageError(f"expected one of {', '.join(_LR_VERBS)}, got {verb!r}")
    if verb in ("restore", "undo"):
        if values:
            raise click.UsageError(f"{verb} takes no value, got {values[0]!r}")
        return run, verb, None
    if len(values) != 1:
        raise click.UsageError(f"{verb} takes one factor, such as `{verb} 0.5`, got {len(values)} values")
    factor = float(values[0]) if _is_number(values[0]) else math.nan
    if not (math.isfinite(factor) and factor > 0):
        raise click.UsageError(f"factor must be a finite number above 0, such as 0.5, got {values[0]!r}")
    return run, verb, factor


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _group(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdigit() else text


def _add_action(action: str, help_text: str) -> None:
    @main.command(action, help=help_text)
    @click.argument("run", required=False)
    @click.option("--reason", default="", help="Kept with the command in the run's events.")
    @click.option("--wait/--no-wait", default=True, help="Wait for the outcome (default), or only send it.")
    @reaching
    @_JSON
    def act(access: Access, run: str | None, reason: str, wait: bool, as_json: bool) -> None:
        _command(*access.live(run), action, {"reason": reason} if reason else {}, wait, as_json)


_add_action("pause", "Hold a run at its next step until `resume`.")
_add_action("resume", "Let a paused run continue.")
_add_action(
    "stop",
    "Ask a run to stop: `run.should_stop` becomes true at its next step. If its loop then ends, the run has finished.",
)
_add_action("checkpoint", "Call the run's `on_checkpoint` at its next step.")


def _command(client: Client, name: str, action: str, body: Mapping[str, Any], wait: bool, as_json: bool) -> None:
    record = client.send(action, body)
    if wait:
        record = client.wait(record)
    if as_json:
        echo_json(record)
    else:
        headline, *changes = _format.outcome(record, name)
        echo(headline, *_ramp(record), *changes, err=record["status"] not in ("applied", "pending"))
    if record["status"] not in ("applied", "pending"):
        raise SystemExit(1)


def _ramp(record: Mapping[str, Any]) -> list[str]:
    """Say of a change by degrees when it is complete. Optimizers that step at paces of their own have no one step."""
    steps = record["over_steps"]
    if record["status"] != "applied" or not steps:
        return []
    if len({change["optimizer"] for change in record["changes"]}) != 1 or record["step"] is None:
        return [f"  by degrees, complete after {steps:,} steps of each optimizer"]
    return [f"  by degrees over {steps:,} steps, complete at step {record['step'] + steps - 1:,}"]


if __name__ == "__main__":
    main()
