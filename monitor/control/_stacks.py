"""What the Python stacks of the training threads of all ranks say: equal ones are told once."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MAX_STACKS = 8
"""Different stacks that are kept: so many fit a record of the run store. Of the other ranks only the numbers are."""
MAX_NAMED = 4
"""Stacks whose innermost frame a message names."""
_LIBRARY = re.compile(r"-packages[/\\]|[/\\]lib(64)?[/\\]python\d|[/\\]Lib[/\\]|^<")
"""What the path of a file of Python's or of an installed library has."""
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_FRAME = re.compile(r'^  File "(.*)", line (\d+), in (.*)$', re.MULTILINE)


@dataclass(frozen=True)
class Stacks:
    """Stacks by rank, and the ranks that were asked and have not answered; of ``num_ranks`` not all need be asked."""

    by_rank: Mapping[int, str]
    silent: Sequence[int] = ()
    num_ranks: int = 1

    @property
    def groups(self) -> list[tuple[list[int], str]]:
        """Ranks with equal stacks, and these: the fewest ranks first, as theirs say most.

        >>> Stacks({0: "waits", 1: "hangs", 2: "waits"}).groups
        [([1], 'hangs'), ([0, 2], 'waits')]
        """
        found: dict[str, list[int]] = {}
        for rank, stack in sorted(self.by_rank.items()):
            found.setdefault(stack, []).append(rank)
        return sorted(((ranks, stack) for stack, ranks in found.items()), key=lambda one: (len(one[0]), one[0]))

    @property
    def message(self) -> str:
        """What all of it says, in one line.

        >>> Stacks({0: '  File "job/train.py", line 7, in load', 1: "  the thread has ended"}, [2], 3).message
        'rank 0 is in load (train.py:7); rank 1: the thread has ended; rank 2 has not answered'
        """
        parts = [f"{_whose(ranks, self.num_ranks)}{_place(stack, len(ranks))}" for ranks, stack in self.groups]
        if len(parts) > MAX_NAMED:
            parts[MAX_NAMED:] = [f"{len(parts) - MAX_NAMED} other stacks"]
        if self.silent:
            parts.append(f"{named(self.silent)} {'has' if len(self.silent) == 1 else 'have'} not answered")
        num_asked = len(self.by_rank) + len(self.silent)
        if 1 < num_asked < self.num_ranks:
            parts.append(f"only the first {num_asked} of {self.num_ranks} ranks were asked")
        return "; ".join(parts)

    @property
    def details(self) -> dict[str, object]:
        """The same for the details of an event, with the stacks."""
        kept, others = self.groups[:MAX_STACKS], self.groups[MAX_STACKS:]
        stacks = [{"ranks": ranks, "of": _whose(ranks, self.num_ranks), "stack": stack} for ranks, stack in kept]
        unshown = sorted(rank for ranks, _ in others for rank in ranks)
        return {"stacks": stacks, "silent": list(self.silent), "unshown": unshown}


def named(ranks: Sequence[int]) -> str:
    """Return what to call ranks, in ascending order.

    >>> named([3]), named([1, 2, 3, 5])
    ('rank 3', 'ranks 1-3, 5')
    """
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and rank == spans[-1][1] + 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    parts = [str(first) if first == last else f"{first}-{last}" for first, last in spans]
    return f"rank{'' if len(ranks) == 1 else 's'} {', '.join(parts)}"


def _whose(ranks: Sequence[int], num_ranks: int) -> str:
    return "the training thread" if num_ranks == 1 else named(ranks)


def _place(stack: str, num_ranks: int) -> str:
    """Say where a stack ends, and from where in the user's own code that was called."""
    frames = _FRAME.findall(stack)
    if not frames:
        return f": {' '.join(stack.split())[:200]}"
    own = next((frame for frame in reversed(frames) if _is_own(frame[0])), frames[-1])
    caller = "" if own == frames[-1] else f", called from {_frame(*own)}"
    return f" {'is' if num_ranks == 1 else 'are'} in {_frame(*frames[-1])}{caller}"


def _is_own(path: str) -> bool:
    """Tell whether a file is the user's own, and neither of a library nor ours, which wraps functions of torch."""
    return not (_LIBRARY.search(path) or path.startswith(_PACKAGE))


def _frame(path: str, line: str, name: str) -> str:
    file = re.split(r"[/\\]", path)[-1]
    return f"{name} ({file}:{line})"
