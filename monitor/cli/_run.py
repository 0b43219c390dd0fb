"""``monitor run``: run a program with ``MONITOR=1`` and the settings in its environment."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import click

from monitor._settings import SECRETS, Settings, resolve, variable_of

_HAS_HOOK = "import sys; sys.exit('_training_monitor' not in sys.modules)"


def _with_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add each setting as an option, its text as it would stand in the variable."""
    for field in reversed(fields(Settings)):
        name = "dir" if field.name == "directory" else field.name.replace("_", "-")
        is_flag = field.type == "bool"
        if field.name not in SECRETS:  # what stands on a command line is seen by every user of the machine
            command = click.option(
                f"--{name}/--no-{name}" if is_flag else f"--{name}",
                field.name,
                default=None,
                metavar=None if is_flag else "VALUE",
                help=field.metadata["doc"],
            )(command)
    return command


@click.command("run", context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@click.option("-m", "is_module", is_flag=True, help="PROGRAM is a module, as in `python -m`.")
@_with_settings
@click.argument("program", nargs=1)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run(is_module: bool, program: str, arguments: tuple[str, ...], **settings: Any) -> None:
    """Run a training script and monitor it, without a line in it.

    \b
    monitor run train.py --epochs 10           a script, by the Python of this command
    monitor run -m package.train --epochs 10   a module
    monitor run torchrun --nproc-per-node 2 train.py
    monitor run --name cifar --port 9500 accelerate launch train.py

    A run begins at the first step of an optimizer, in PROGRAM or in a Python that it starts. The options before PROGRAM
    are the settings of `monitor.attach`; tokens come from $MONITOR_TOKEN and $MONITOR_READ_TOKEN. All of it is the same
    as MONITOR=1 in the environment. The exit status is that of PROGRAM.
    """
    words = _command(program, arguments, is_module=is_module)
    _become(words, {**os.environ, "MONITOR": "1", **_variables(settings)})


def _variables(settings: dict[str, Any]) -> dict[str, str]:
    """Return the settings that were given as environment variables.

    Raises:
        UsageError: one cannot be, with the value and the cure.
    """
    given = {variable_of(name): _text(value) for name, value in settings.items() if value is not None}
    try:
        resolve({}, {**os.environ, **given})
    except (TypeError, ValueError) as error:
        raise click.UsageError(str(error)) from error
    return given


def _text(value: Any) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def _command(program: str, arguments: Sequence[str], *, is_module: bool) -> list[str]:
    """Return the words of the command that is run: a script and a module by this Python."""
    if is_module:
        return _by_python("-m", program, *arguments)
    if program.endswith((".py", ".pyw", ".pyz")) or Path(program, "__main__.py").is_file():
        return _by_python(program, *arguments)
    found = shutil.which(program)
    if found is None:
        raise click.UsageError(f"there is no program {program!r}; a script ends with .py, a module is `-m {program}`")
    return [found, *arguments]


def _by_python(*words: str) -> list[str]:
    """Return the command of a Python program, if this Python would load the hook.

    Raises:
        ClickException: it would not.
    """
    environment = {**os.environ, "MONITOR": "1"}
    if subprocess.run([sys.executable, "-c", _HAS_HOOK], env=environment, check=False).returncode:
        raise click.ClickException(
            f"{sys.executable} reads no training-monitor.pth when it starts, so that nothing would be monitored; "
            "install the package with pip, or attach in the script"
        )
    return [sys.executable, *words]


def _become(words: Sequence[str], environment: dict[str, str]) -> NoReturn:
    """Be the program from here on; on Windows, which cannot do that, run it and exit as it does.

    Raises:
        ClickException: it cannot be run.
    """
    try:
        if os.name != "nt":
            os.execve(words[0], list(words), environment)
        sys.exit(subprocess.run(words, env=environment, check=False).returncode)
    except OSError as error:
        raise click.ClickException(f"cannot run {shlex.join(words)}: {error.strerror}") from error
