"""The frames that were written to the watcher and are not yet in its memory: another watcher would have to get them."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from monitor.link import ENTRIES, MESSAGE

MAX_RETAINED_BYTES = 2**24


class Remembered(NamedTuple):
    """What the watcher has said that it knows: the last entry, how many messages, and all that it has learnt."""

    sequence: int = 0
    num_messages: int = 0
    memory: bytes = b""


class _Frame(NamedTuple):
    """Entries, with the number of the last one, or a message, with its own number."""

    kind: int
    number: int
    content: bytes


class Retained:
    """Keep what the watcher does not remember, ``max_bytes`` at most; what is given up counts as dropped there.

    The link's thread writes; ``remembered`` is set by that of the reader.
    """

    def __init__(self, max_bytes: int = MAX_RETAINED_BYTES) -> None:
        self.remembered = Remembered()
        self._max_bytes = max_bytes
        self._frames: deque[_Frame] = deque()
        self._num_bytes = 0
        self._num_messages = 0

    def keep_entries(self, sequence: int, frame: bytes) -> None:
        """Keep a frame of entries, of which the last has this number."""
        self._keep(_Frame(ENTRIES, sequence, frame))

    def keep_message(self, frame: bytes) -> None:
        """Keep a message that is recorded."""
        self._num_messages += 1
        self._keep(_Frame(MESSAGE, self._num_messages, frame))

    def _keep(self, frame: _Frame) -> None:
        self._frames.append(frame)
        self._num_bytes += len(frame.content)
        known = self.remembered
        while self._frames and (_is_in(known, self._frames[0]) or self._num_bytes > self._max_bytes):
            self._num_bytes -= len(self._frames.popleft().content)

    def missing(self, known: Remembered) -> list[bytes]:
        """Return what a watcher with this memory has to be sent, in order."""
        return [frame.content for frame in self._frames if not _is_in(known, frame)]


def _is_in(known: Remembered, frame: _Frame) -> bool:
    return frame.number <= (known.sequence if frame.kind == ENTRIES else known.num_messages)
