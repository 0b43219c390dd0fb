"""Who else uses this machine."""

from __future__ import annotations

import getpass
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import psutil

_FIRST_UID, _NOBODY = 1000, 65534
_NO_LOGIN = ("nologin", "false", "sync", "halt", "shutdown")


def _logged_in() -> list[str]:
    return [user.name for user in psutil.users()]


def other_users(
    accounts: Path = Path("/etc/passwd"),
    present: Callable[[], Iterable[str]] = _logged_in,
    own: Callable[[], str] = getpass.getuser,
) -> set[str]:
    """Return the names of others who can log in here, as far as can be told without asking a directory service: those
    with an account of this machine and a shell, and those who are logged in. Root is not among them.

    >>> other_users(Path("/nowhere"), lambda: ["ada", "root", "grace"], lambda: "ada")
    {'grace'}
    """
    found: set[str] = set()
    with suppress(OSError, ValueError):
        found |= {name for line in accounts.read_text().splitlines() if (name := _login_of(line))}
    with suppress(Exception):  # what psutil raises depends on the system
        found |= set(present())
    return found - {"root", _name(own)}


def _login_of(line: str) -> str | None:
    """Return the name in a line of passwd(5), if somebody can log in by it."""
    parts = line.split(":")
    if len(parts) != 7 or not parts[2].isdecimal() or parts[6].rpartition("/")[2] in _NO_LOGIN:
        return None
    return parts[0] if _FIRST_UID <= int(parts[2]) < _NOBODY else None


def _name(own: Callable[[], str]) -> str:
    try:
        return own()
    except (OSError, KeyError, ImportError):  # a container may know its user by number only
        return ""
