"""Who else can log in on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from monitor.system import other_users

ACCOUNTS = """\
root:x:0:0:root:/root:/bin/bash
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
ada:x:1000:1000:,,,:/home/ada:/bin/bash
grace:x:1001:1001:,,,:/home/grace:/bin/zsh
backup:x:1002:1002:,,,:/home/backup:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/bin/sh
a line that is none
"""


@pytest.mark.parametrize(
    ("own", "present", "found"),
    [
        ("ada", [], {"grace"}),
        ("ada", ["ada", "root", "emmy"], {"grace", "emmy"}),
        ("root", [], {"ada", "grace"}),
    ],
)
def test_others_have_a_shell_or_are_logged_in(own: str, present: list[str], found: set[str], tmp_path: Path) -> None:
    """Accounts of services do not count, nor does who asks, nor root, who reads everything anyway."""
    (tmp_path / "passwd").write_text(ACCOUNTS)
    assert other_users(tmp_path / "passwd", lambda: present, lambda: own) == found


def test_what_cannot_be_told_is_nobody(tmp_path: Path) -> None:
    """No file, no records of logins, no name of one's own: the run starts all the same."""

    def fails() -> list[str]:
        raise OSError("no such records")

    def unnamed() -> str:
        raise KeyError("uid not found")

    assert other_users(tmp_path / "passwd", fails, unnamed) == set()
