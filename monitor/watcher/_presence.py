"""Whether the training process is still there, and still runs the program that holds the link."""

from __future__ import annotations

import os

import psutil


class Presence:
    """Look for a thread of the training process: it is gone after an exit, a kill and an ``exec`` alike.

    Without ``/proc`` the process is looked for instead. What cannot be seen at first counts as there: the link tells.

    Args:
        pid: of the training process.
        thread: the system's number of its link thread.
    """

    def __init__(self, pid: int, thread: int) -> None:
        self._task = f"/proc/{pid}/task/{thread}" if os.path.isdir("/proc/self/task") else None
        self._process = None if self._task else _process_of(pid)
        self._can_tell = self._is_seen()

    @property
    def is_gone(self) -> bool:
        """Tell whether it is gone."""
        return self._can_tell and not self._is_seen()

    def _is_seen(self) -> bool:
        if self._task is not None:
            return _has_memory(self._task)
        try:
            return self._process is not None and self._process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False


def _has_memory(task: str) -> bool:
    """Tell whether a thread is there and not on its way out: the kernel takes its memory before it closes its files."""
    try:
        with open(f"{task}/statm", "rb") as file:
            return not file.read(2).startswith(b"0 ")
    except OSError:
        return False


def _process_of(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.Error:
        return None
