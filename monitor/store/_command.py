"""The command that looks into run folders, as a terminal has to type it for this very ``monitor``."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path


def own_command(executable: str = sys.executable, path: str | None = None) -> str:
    """Return what a terminal has to type for this very `monitor`: the bare name only where the shell would find it.

    ``executable`` is the interpreter that the command lies beside, ``path`` the directories that a shell looks in;
    default: ``$PATH``. Outside an activated environment the answer is a path, from the working directory if that is
    shorter.

    >>> own_command(executable="/nowhere/bin/python", path="")
    '/nowhere/bin/python -m monitor'
    """
    found = shutil.which("monitor", path=path)
    beside = shutil.which("monitor", path=os.path.dirname(executable))
    if found and (beside is None or Path(found).samefile(beside)):
        return "monitor"
    return _shortest(beside) if beside else f"{_shortest(executable)} -m monitor"


def _shortest(path: str) -> str:
    try:
        path = min(path, os.path.relpath(path), key=len)
    except (OSError, ValueError):  # the working directory is gone; on Windows: another drive
        pass
    return f'"{path}"' if " " in path else path
