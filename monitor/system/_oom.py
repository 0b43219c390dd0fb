"""The kernel's out-of-memory killer: whether it has struck in the control group of this process."""

from __future__ import annotations

from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


class OutOfMemoryCounter:
    """Tell whether the out-of-memory killer has struck since this was made. Linux with cgroup v2; elsewhere: nothing.

    Source: Documentation/admin-guide/cgroup-v2.rst, memory.events.

    Args:
        own: the file that names the control group.
        root: where control groups are mounted.
    """

    def __init__(self, own: Path = _OWN, root: Path = _ROOT) -> None:
        self._own, self._root = own, root
        self._before = self._count()

    def _count(self) -> int | None:
        try:
            line = next(line for line in self._own.read_text().splitlines() if line.startswith("0::"))
            events = (self._root / line[3:].strip("/") / "memory.events").read_text()
            return int(dict(one.split() for one in events.splitlines())["oom_kill"])
        except (OSError, StopIteration, KeyError, ValueError):
            return None

    def explain(self) -> str | None:
        """Return what has happened in words, or None."""
        now = self._count()
        if now is None or self._before is None or now <= self._before:
            return None
        return "the kernel's out-of-memory killer has killed a process of its control group meanwhile"
