"""Open files of run folders, none of which anybody else can have written: every access to one passes here.

A folder, and each file in it, must be no link, belong to this user or to root, and be writable by nobody else, sticky
folders apart; a file must be a regular one of bounded size. A folder is opened once and its files by its descriptor, so
that nobody can put another in its place in between. Where the runs directory lies, and who may write it, does not
matter.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

FILE_BYTES = 2**16
"""The longest file that is read, unless another limit is given."""
_HAS_OWNERS = hasattr(os, "geteuid")
_HAS_DESCRIPTORS = os.open in os.supports_dir_fd
# What lies in a folder may be anything: a FIFO must not be waited for, a link not followed.
_FLAGS = sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOFOLLOW", "O_CLOEXEC", "O_NOCTTY", "O_BINARY"))
_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class UntrustedError(OSError):
    """A file or folder that somebody else may have written, or that is none of a run. The message names it and the
    remedy."""


class Folder:
    """A folder that is open; see :func:`opened`."""

    def __init__(self, path: Path, descriptor: int | None) -> None:
        self.path = path
        self._descriptor = descriptor

    def open(self, name: str, flags: int = os.O_RDONLY) -> int:
        """Return a descriptor of a file; one that ``flags`` create is for the owner alone.

        Raises:
            UntrustedError: it is not to be used. OSError: it cannot be opened.
        """
        path = self.path / name
        descriptor = _opened(self._named(name), flags, path, self._descriptor)
        try:
            check_file(path, os.fstat(descriptor))
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def names(self) -> list[str]:
        """Return the names of all that lies in it, in order."""
        return sorted(os.listdir(self.path if self._descriptor is None else self._descriptor))

    def replace(self, source: str, target: str) -> None:
        """Give a file another name, in one go."""
        at = self._descriptor
        os.replace(self._named(source), self._named(target), src_dir_fd=at, dst_dir_fd=at)

    def remove(self, name: str) -> None:
        """Remove a file, whatever it is; nothing if it is not there."""
        with suppress(FileNotFoundError):
            os.unlink(self._named(name), dir_fd=self._descriptor)

    def address(self, name: str) -> str:
        """Return the address of a Unix socket in it, while it is open: by its descriptor where the system can, which
        leads to no other folder and is never too long."""
        by_descriptor = f"/proc/self/fd/{self._descriptor}"
        return f"{by_descriptor}/{name}" if os.path.isdir(by_descriptor) else str(self.path / name)

    def check_socket(self, name: str) -> None:
        """Raise UntrustedError for what is not a Unix socket of this user or of root, OSError where nothing is."""
        path = self.path / name
        found = os.stat(self._named(name), dir_fd=self._descriptor, follow_symlinks=False)
        if not stat.S_ISSOCK(found.st_mode):
            raise UntrustedError(f"{path} is not a socket; remove it")
        _check_owner(path, found)

    def close_to_others(self, name: str) -> None:
        """Have nobody but the owner connect to a socket."""
        os.chmod(self._named(name), 0o600, dir_fd=self._descriptor)

    def _named(self, name: str) -> str | Path:
        return self.path / name if self._descriptor is None else name


@contextmanager
def opened(path: Path, *, is_mended: bool = False) -> Iterator[Folder]:
    """Open a folder in which nobody else can replace a file: one that they cannot write, or a sticky one. With
    ``is_mended`` see to it that they cannot write it from here on, if it is one's own and not sticky.

    Raises:
        UntrustedError: others can replace its files, it belongs to somebody else, or is a link.
        OSError: it cannot be opened.
    """
    if not _HAS_DESCRIPTORS:
        yield Folder(path, None)
        return
    descriptor = _opened(path, os.O_RDONLY | os.O_DIRECTORY, path)
    try:
        found = os.fstat(descriptor)
        _check_owner(path, found)
        if not found.st_mode & stat.S_ISVTX:
            _check_mode(path, _closed_to_others(descriptor, found) if is_mended else found)
        yield Folder(path, descriptor)
    finally:
        os.close(descriptor)


def _closed_to_others(descriptor: int, found: os.stat_result) -> os.stat_result:
    if found.st_mode & _OTHERS and found.st_uid == os.geteuid():
        os.fchmod(descriptor, stat.S_IMODE(found.st_mode) & ~_OTHERS)
    return os.fstat(descriptor)


def _opened(name: str | Path, flags: int, path: Path, at: int | None = None) -> int:
    try:
        return os.open(name, flags | _FLAGS, 0o600, dir_fd=at)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK, errno.ENOTDIR) and os.path.islink(path):
            raise UntrustedError(f"{path} is a link, and links are not followed; put there what it leads to") from error
        raise


def check_file(path: Path, found: os.stat_result) -> None:
    """Raise UntrustedError for what is not a regular file of this user or of root, writable by nobody else."""
    if stat.S_ISLNK(found.st_mode):
        raise UntrustedError(f"{path} is a link, and links are not followed; put there what it leads to")
    if not stat.S_ISREG(found.st_mode):
        raise UntrustedError(f"{path} is not a regular file; remove it")
    _check_owner(path, found)
    _check_mode(path, found)


def _check_owner(path: Path, found: os.stat_result) -> None:
    if _HAS_OWNERS and found.st_uid not in (0, os.geteuid()):
        raise UntrustedError(
            f"{path} belongs to user {found.st_uid}, and only what is yours or root's is used; act as that user, or "
            "remove it"
        )


def _check_mode(path: Path, found: os.stat_result) -> None:
    """Refuse what others can write. A group with the number of its user is that user's own (user private groups)."""
    is_own_group = found.st_gid == found.st_uid
    if _HAS_OWNERS and found.st_mode & (stat.S_IWOTH if is_own_group else _OTHERS):
        raise UntrustedError(
            f"{path} can be written by others (mode {stat.S_IMODE(found.st_mode):04o}); "
            f"`chmod go-w {shlex.quote(str(path))}` if nobody has, or remove it"
        )


def read_own_text(path: Path, limit: int = FILE_BYTES) -> str | None:
    """Return what a file in a run folder holds, without blanks around it; None where there is none that can be read.

    Raises:
        UntrustedError: folder or file may be somebody else's, or the file is longer than ``limit`` bytes.
    """
    try:
        with opened(path.parent) as folder:
            content = _read(folder.open(path.name), limit + 1)
    except UntrustedError:
        if os.path.lexists(path):
            raise
        return None
    except OSError:
        return None
    if len(content) > limit:
        raise UntrustedError(f"{path} is longer than {limit:,} bytes, and no run has written that; remove it")
    return _decoded(content)


def read_text(path: Path, limit: int = FILE_BYTES) -> str | None:
    """Return what a regular file of anybody holds, without blanks around it; None where it cannot be read, is empty or
    longer than ``limit`` bytes. Never waits for a FIFO or a device."""
    try:
        descriptor = os.open(path, os.O_RDONLY | _FLAGS)
        content = _read(descriptor, limit + 1 if stat.S_ISREG(os.fstat(descriptor).st_mode) else 0)
    except OSError:
        return None
    return _decoded(content) if 0 < len(content) <= limit else None


def _read(descriptor: int, limit: int) -> bytes:
    try:
        content = b""
        while len(content) < limit and (chunk := os.read(descriptor, limit - len(content))):
            content += chunk
        return content
    finally:
        os.close(descriptor)


def _decoded(content: bytes) -> str | None:
    try:
        return content.decode().strip()
    except UnicodeDecodeError:
        return None


def read_own_object(path: Path, limit: int = FILE_BYTES) -> dict[str, Any] | None:
    """Return the JSON object in a file; None where there is none. Otherwise as :func:`read_own_text`."""
    found = read_own_json(path, limit)
    return found if isinstance(found, dict) else None


def read_own_json(path: Path, limit: int = FILE_BYTES) -> Any:
    """Return the JSON value in a file; None where there is none, or it is nested too deeply. Otherwise as
    :func:`read_own_text`."""
    try:
        return json.loads(read_own_text(path, limit) or "")
    except (ValueError, RecursionError):
        return None
