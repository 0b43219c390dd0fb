"""Frames on a pipe: a kind, a length, a payload.

Entries go as :mod:`marshal`, everything else as :mod:`pickle`. Both ends are processes of one run, and nobody else can
write into their pipes.
"""

from __future__ import annotations

import marshal
import os
import pickle
import signal
import struct
import threading
from contextlib import suppress
from typing import Any

from monitor.link._forms import checked

ENTRIES, MESSAGE = 1, 2
MAX_FRAME_BYTES = 2**30
_HEAD = struct.Struct("<BI")


class Pipe:
    """One end of a pipe: write frames from several threads, or read them on one.

    A program may close descriptors that are not its own (a daemon closes all of them) and be given their numbers again
    for its files: before each use, and before the close, the number is looked at.

    Args:
        descriptor: of the pipe; closed by :meth:`close`.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._identity = _identity(descriptor)
        self._is_closing = False
        self._lock = threading.Lock()

    def write(self, frame: bytes) -> None:
        """Write a whole frame; wait until the other end has room.

        Raises:
            OSError: the other end is gone, or this one was closed.
        """
        try:
            with self._lock:
                view = memoryview(frame)
                while view:
                    view = view[os.write(self._opened(), view) :]
        finally:
            self._close_if_asked()

    def read(self) -> tuple[int, bytes] | None:
        """Return kind and payload of the next frame; None at the end, also in the middle of a frame."""
        try:
            with self._lock:
                return self._read_frame()
        finally:
            self._close_if_asked()

    def _read_frame(self) -> tuple[int, bytes] | None:
        head = self._read_exactly(_HEAD.size)
        if head is None:
            return None
        kind, length = _HEAD.unpack(head)
        payload = self._read_exactly(length) if length <= MAX_FRAME_BYTES else None
        return None if payload is None else (kind, payload)

    def _read_exactly(self, size: int) -> bytes | None:
        parts = []
        while size:
            try:
                part = os.read(self._opened(), min(size, 2**20))
            except OSError:
                return None
            if not part:
                return None
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _opened(self) -> int:
        if self._is_closing or self._descriptor < 0:
            raise BrokenPipeError("the link is closed")
        if _identity(self._descriptor) != self._identity:
            self._descriptor = -1
            raise BrokenPipeError("the program has closed the link")
        return self._descriptor

    def close(self) -> None:
        """Close this end. Safe to repeat. While another thread reads or writes, that thread closes it: the number must
        not become that of a file between its look and its use."""
        self._is_closing = True
        self._close_if_asked()

    def _close_if_asked(self) -> None:
        if self._is_closing and self._lock.acquire(blocking=False):
            try:
                self.abandon()
            finally:
                self._lock.release()

    def abandon(self) -> None:
        """Close this end in a forked child, where a thread that does not exist may hold the lock."""
        descriptor, self._descriptor = self._descriptor, -1
        with suppress(OSError):  # the program has closed it
            if descriptor >= 0 and _identity(descriptor) == self._identity:
                os.close(descriptor)


def _identity(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino


def pack_entries(entries: list[bytes]) -> bytes:
    """Return the frame of some packed entries.

    >>> unpack_entries(pack_entries([b"one", b"two"])[5:])
    [b'one', b'two']
    """
    payload = marshal.dumps(entries)
    return _HEAD.pack(ENTRIES, len(payload)) + payload


def unpack_entries(payload: bytes) -> list[bytes]:
    """Return the packed entries of a frame. Raises ValueError, EOFError or TypeError for what holds none."""
    entries = marshal.loads(payload)
    if not isinstance(entries, list) or not all(isinstance(entry, bytes) for entry in entries):
        raise ValueError(f"a frame of entries holds {type(entries).__name__}, not a list of bytes")
    return entries


def pack_message(kind: str, content: Any) -> bytes:
    """Return the frame of a message. Raises whatever pickle raises for a content that cannot be pickled."""
    payload = pickle.dumps((kind, content), pickle.HIGHEST_PROTOCOL)
    return _HEAD.pack(MESSAGE, len(payload)) + payload


def unpack_message(payload: bytes) -> tuple[str, Any]:
    """Return kind and content of a message. Raises ValueError for one that has not the form of its kind, and whatever
    pickle raises for what is no pickle."""
    return checked(pickle.loads(payload))


def hold_back_sigpipe() -> None:
    """Hold SIGPIPE back from this thread: where the program has given it its default action, as command-line programs
    do, to write to a pipe that nobody reads would end the program."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})
