"""Write files of a run folder: whole or not at all, and by one process at a time."""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from monitor.store._known import LOCK

try:
    import fcntl
except ImportError:  # no locks: the state in run.json alone tells whose the folder is
    fcntl = None  # type: ignore[assignment]

_POLL_SECONDS = 0.02


def write_atomically(path: Path, text: str, mode: int = 0o600) -> None:
    """Write a file so that a reader sees the old content or the new, and a full disk leaves the old."""
    # mkstemp makes the file 0600, so a secret is never readable by others, not even for a moment.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        if mode != 0o600:
            os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def lock(folder: Path, seconds: float = 0.0) -> int | None:
    """Return a descriptor that keeps others from writing to a folder until :func:`unlock`, or the end of this process;
    None where the file system has no locks. Wait ``seconds`` at most for whoever has it.

    Raises:
        OSError: the folder cannot be written. BlockingIOError: somebody else writes to it.
    """
    if fcntl is None:
        return None
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    descriptor = os.open(folder / LOCK, flags, 0o600)
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(descriptor)
                raise
        except OSError:
            os.close(descriptor)
            return None
        time.sleep(_POLL_SECONDS)


def unlock(descriptor: int | None) -> None:
    """Let others write to a folder again: at once, though a forked child may hold a copy of the descriptor."""
    if descriptor is not None and fcntl is not None:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)
