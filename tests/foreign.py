"""Files of another user, and text that would steer a terminal."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

NOBODY = 65534
HOSTILE = "\x1b[2J\x1b]0;owned\x07\u202egnp.exe\u2066\u200f\x9b31m\x7f\u2028"
"""Clears the screen, renames the window, turns the direction of writing, colours, breaks the line."""


def give_away(path: Path) -> None:
    """Make a file or folder, with all that lies in it, another user's. Skips the test where that is not allowed."""
    if os.geteuid() != 0:
        pytest.skip("only root can give a file to another user")
    for one in (path, *path.rglob("*")):
        os.chown(one, NOBODY, NOBODY, follow_symlinks=False)
