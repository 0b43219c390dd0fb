"""Make the runs directory, and write files of a run folder: whole or not at all, and by one process at a time."""

from __future__ import annotations

import os
import secrets
import time
from contextlib import suppress
from pathlib import Path

from monitor.store._known import LOCK
from monitor.store._trusted import opened

try:
    import fcntl
except ImportError:  # no locks: the state in run.json alone tells whose the folder is
    fcntl = None  # type: ignore[assignment]

_POLL_SECONDS = 0.02


def write_atomically(path: Path, text: str, mode: int = 0o600) -> None:
    """Write a file so that a reader sees the old content or the new, and a full disk leaves the old.

    Raises:
        UntrustedError: its folder may be somebody else's. OSError: it cannot be written.
    """
    with opened(path.parent) as folder:
        temporary = f".{path.name}.{secrets.token_hex(6)}"
        # Only its owner can read the file from the start on, so that a secret never lies open, not even for a moment.
        descriptor = folder.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                if mode != 0o600:
                    os.chmod(file.fileno() if os.chmod in os.supports_fd else path.parent / temporary, mode)
            folder.replace(temporary, path.name)
        except BaseException:
            with suppress(OSError):
                folder.remove(temporary)
            raise


def make_root(root: Path) -> None:
    """Make the directory of the run folders, which only its owner may enter, and those above it, which others may not
    write, whatever the umask. One that is there stays as it is. Raises OSError."""
    for above in reversed(root.parents):
        if not above.exists():
            above.mkdir(mode=0o755, exist_ok=True)
    root.mkdir(mode=0o700, exist_ok=True)


def make_public(folder: Path) -> None:
    """Make a folder that everybody may read and its owner alone may write. One that is there is made so if it is one's
    own: earlier versions left that to the umask.

    Raises:
        UntrustedError: it is another user's, or a link. OSError: it cannot be made.
    """
    folder.mkdir(mode=0o755, exist_ok=True)
    with opened(folder, is_mended=True):
        pass


def lock(folder: Path, seconds: float = 0.0) -> int | None:
    """Return a descriptor that keeps others from writing to a folder until :func:`unlock`, or the end of this process;
    None where the file system has no locks. Wait ``seconds`` at most for whoever has it.

    Raises:
        UntrustedError: folder or file may be somebody else's.
        OSError: the folder cannot be written. BlockingIOError: somebody else writes to it.
    """
    if fcntl is None:
        return None
    with opened(folder) as place:
        descriptor = place.open(LOCK, os.O_RDWR | os.O_CREAT)
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
