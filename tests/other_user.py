"""What another login user of the machine tries: functions for a process that has become nobody."""

from __future__ import annotations

import ctypes
import encodings.idna  # noqa: F401  # what a socket loads: once another user, this Python may be out of reach
import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from monitor.cli._main import main
from tests.foreign import NOBODY

ROOT = Path(__file__).resolve().parents[1]
PTRACE_ATTACH = 16
"""ptrace(2)"""


def as_nobody(*calls: tuple[Any, ...]) -> list[Any]:
    """Return what functions of this module, each with its arguments, do as another user in a process of its own."""
    words = [sys.executable, "-m", "tests.other_user", json.dumps(calls)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found: list[Any] = json.loads(done.stdout)
    return found


def read(path: str) -> str:
    """Return the content of a file, the names in a folder, or the name of the error."""
    try:
        return " ".join(sorted(os.listdir(path))) if os.path.isdir(path) else Path(path).read_bytes().decode()
    except OSError as error:
        return type(error).__name__


def write(path: str) -> str:
    """Try to put a file there, or to write into it."""
    try:
        with open(os.path.join(path, "planted") if os.path.isdir(path) else path, "ab"):
            return "written"
    except OSError as error:
        return type(error).__name__


def ask(method: str, url: str) -> int:
    """Return the status of a request without a token."""
    request = urllib.request.Request(url, method=method, data=b"{}" if method == "POST" else None)
    request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def command(*words: str) -> dict[str, Any]:
    """Run a command of ours."""
    result = CliRunner().invoke(main, words, prog_name="monitor")
    return {"status": result.exit_code, "out": result.stdout, "err": result.stderr}


def interfere(pid: int) -> dict[str, str]:
    """Try to end a process, to be its debugger, and to read its memory, environment and open files."""
    found = {what: read(f"/proc/{pid}/{what}") for what in ("environ", "mem", "maps", "fd")}
    try:
        os.kill(pid, 9)
    except OSError as error:
        found["kill"] = type(error).__name__
    libc = ctypes.CDLL(None, use_errno=True)
    found["ptrace"] = (
        "attached" if libc.ptrace(PTRACE_ATTACH, pid, None, None) == 0 else os.strerror(ctypes.get_errno())
    )
    return found


def call_as_rank(port: int) -> int:
    """Call at the port of the ranks with a proof that is none; return how many bytes come after the nonce."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        nonce = connection.recv(32)
        connection.sendall(b"\1\0\0\0" + nonce + bytes(32))
        return len(connection.recv(4096))


def become(user: int) -> None:
    """Give up every right of the user that one was."""
    command("runs", "--dir", "/nonexistent")  # loads what it needs: this Python may lie where nobody may read
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
    os.environ["HOME"] = "/"


if __name__ == "__main__":
    become(NOBODY)
    print(json.dumps([globals()[function](*arguments) for function, *arguments in json.loads(sys.argv[1])]))
