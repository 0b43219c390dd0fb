"""The sums of a step over the ranks: rank 0's steps wait until the others have sent their shares."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from monitor._records import Sample, Step
from monitor.ranks._own_times import OwnTimes, OwnTimeWindow
from monitor.ranks._share import Share, share_of

PATIENCE_SECONDS = 5.0
"""How long a step waits for a share that is missing; that rank is not waited for again before it sends one."""
START_SECONDS = 15.0
"""How long it waits for one that is known to be attached and has never sent one: its watcher may still be starting."""
MAX_SHARES = 1_000_000
"""Shares that are kept of steps that rank 0 has not made yet; of 1,000 steps at least."""
SAME = 1e-6
"""Norms that differ by less, relatively, are those of one gradient that several ranks hold."""

NOT_ALL = "not all ranks have told their parts"
APART = "every rank has another gradient"


class StepSums:
    """Hold back the steps of rank 0 until every other rank's share is there; put the sums in their place.

    ``put`` and ``take`` are called on one thread, the others on any.

    Args:
        num_ranks: how many there are, rank 0 included.
        optimizers: by name, in the order of ``attach``.
        clock: a monotonic clock in seconds.

    >>> sums = StepSums(2, ["SGD"])
    >>> sums.put(Step("SGD", 1, 1, 0.0, duration=None, loss=2.0, gradient_norm=3.0))
    >>> sums.take()
    []
    >>> sums.add(1, [Share(0, 1, loss=4.0, whole=3.0)])
    >>> [(step.loss, step.gradient_norm) for step in sums.take()]
    [(3.0, 3.0)]
    """

    def __init__(self, num_ranks: int, optimizers: Iterable[str], clock: Callable[[], float] = time.monotonic) -> None:
        self.num_ranks = num_ranks
        self.num_put = self.num_taken = 0
        self.num_summed = 1
        """Ranks whose shares are in the last step."""
        self.num_incomplete = 0
        """Steps whose sums lack a rank's share."""
        self._places = {key: i for i, key in enumerate(optimizers)}
        self._clock = clock
        self._attached: frozenset[int] = frozenset()
        self._queue: deque[tuple[Step | Sample, float]] = deque()
        self._shares: dict[tuple[int, int], dict[int, Share]] = {}
        self._heard: dict[int, dict[int, int]] = {rank: {} for rank in range(1, num_ranks)}
        self._awaited: set[tuple[int, int]] = {(rank, i) for rank in self._heard for i in self._places.values()}
        self._ever: set[int] = set()
        self._max_ahead = max(1000, MAX_SHARES // num_ranks)
        self._with_loss: set[tuple[int, int]] = set()
        self._are_same: dict[int, bool] = {}
        self._last: dict[int, int] = {}
        self._window = OwnTimeWindow(clock)
        self.own_times: Mapping[int, float] = {}
        """What each rank took for itself in a step of the last window, in seconds."""
        self._lock = threading.Lock()

    # ------------------------------------------------------------------------------------------------ any thread

    def add(self, rank: int, shares: Sequence[Share]) -> None:
        """Take shares of a rank, oldest first; those of steps that are through, or known, are left out."""
        with self._lock:
            heard = self._heard.setdefault(rank, {})
            for share in shares:
                if share.number > max(heard.get(share.optimizer, 0), self._last.get(share.optimizer, 0)):
                    heard[share.optimizer] = share.number
                    self._shares.setdefault((share.optimizer, share.number), {})[rank] = share
                    self._awaited.add((rank, share.optimizer))
                    self._ever.add(rank)
            while len(self._shares) > self._max_ahead:
                del self._shares[next(iter(self._shares))]

    def expect(self, ranks: Iterable[int]) -> None:
        """Know which ranks are attached."""
        self._attached = frozenset(ranks)

    def leave(self, rank: int) -> None:
        """Wait for a rank no longer: its run has ended."""
        with self._lock:
            self._awaited = {one for one in self._awaited if one[0] != rank}
            self._heard.pop(rank, None)

    @property
    def joined(self) -> frozenset[int]:
        """The ranks whose shares are in the sums: those that have sent some, and are awaited."""
        with self._lock:
            return frozenset(rank for rank, _ in self._awaited if self._heard[rank])

    # ------------------------------------------------------------------------------------------------ one thread

    def put(self, record: Step | Sample) -> None:
        """Take a step of rank 0, or a sample that must not overtake the steps before it."""
        self._queue.append((record, self._clock()))
        self.num_put += 1

    def amend(self, optimizer: str, global_step: int, loss: float) -> bool:
        """Give a step that still waits another loss of rank 0; tell whether it was there."""
        for i, (record, since) in enumerate(self._queue):
            if isinstance(record, Step) and (record.optimizer, record.global_step) == (optimizer, global_step):
                self._queue[i] = replace(record, loss=loss), since
                return True
        return False

    def take(self, *, is_last: bool = False) -> list[Step | Sample]:
        """Return what waits no longer, in order; with ``is_last`` all of it."""
        found: list[Step | Sample] = []
        with self._lock:
            while self._queue and (is_last or self._is_through(*self._queue[0])):
                record, _ = self._queue.popleft()
                found.append(self._summed(record) if isinstance(record, Step) else record)
        self.num_taken += len(found)
        return found

    def take_own_times(self) -> OwnTimes | None:
        """Return what the ranks took for themselves in a window that is over, once."""
        found = self._window.take()
        if found is not None:
            self.own_times = found.by_rank
        return found

    def _is_through(self, record: Step | Sample, since: float) -> bool:
        if isinstance(record, Sample):
            return True
        place, now = self._places[record.optimizer], self._clock()
        late = [
            (rank, of) for rank, of in self._awaited if of == place and self._heard[rank].get(place, 0) < record.number
        ]
        if any(now - since < self._patience(rank) for rank, _ in late):
            return False
        self._awaited.difference_update(late)
        return True

    def _patience(self, rank: int) -> float:
        is_starting = rank in self._attached and not self._heard[rank]
        return START_SECONDS if is_starting else PATIENCE_SECONDS

    def _summed(self, step: Step) -> Step:
        place = self._places[step.optimizer]
        self._last[place] = step.number
        shares = {0: share_of(step, place), **self._shares.pop((place, step.number), {})}
        loss = self._loss(place, shares)
        if place == 0:  # the first optimizer paces the run
            self._window.add(shares)
        self.num_summed = len(shares)
        self.num_incomplete += len(shares) <= sum(map(bool, self._heard.values()))
        norm, reason = self._norm(place, shares, step.gradient_norm_reason)
        return replace(step, loss=loss, gradient_norm=norm, gradient_norm_reason=reason)

    def _loss(self, place: int, shares: Mapping[int, Share]) -> float | None:
        """Return the mean over the ranks that have a loss (a stage of a pipeline has none); None where one that has
        always had one has none now, as then it is not known."""
        losses = {rank: share.loss for rank, share in shares.items() if share.loss is not None}
        self._with_loss.update((place, rank) for rank in losses)
        if not losses or any((place, rank) in self._with_loss for rank in shares.keys() - losses.keys()):
            return None
        return sum(losses.values()) / len(losses)

    def _norm(self, place: int, shares: Mapping[int, Share], reason: str | None) -> tuple[float | None, str | None]:
        """Return the norm of the gradient that the ranks hold together, or why it is not known.

        A norm that all ranks have is that of one gradient, which each of them holds. Norms that differ are those of
        parts, where some ranks have no loss: of the stages of a pipeline, each perhaps several times. The total is the
        root of the sum of the squares of the parts, and of the shards of all ranks. Source:
        torch.nn.utils.get_total_norm, DTensor's norm over a mesh.
        """
        norms = list(shares.values())
        whole = [share.whole for share in norms if share.whole is not None]
        shards = [share.shards for share in norms if share.shards is not None]
        parts, is_all = _distinct(whole), len(shares) == self.num_ranks
        if not shards and len(whole) == len(shares) and shares.keys() >= self._ever:
            self._are_same[place] = len(parts) == 1
        if not shards and whole and self._are_same.get(place):
            return whole[0], None
        if not is_all or len(whole) < len(shares):
            return None, reason or (NOT_ALL if whole and not is_all else None)
        if len(parts) > 1 and all((place, rank) in self._with_loss for rank in shares):
            return None, APART
        flat = [share.flat for share in norms if share.flat is not None]
        return _root([*parts, *shards, *_distinct(flat)]), None

    # ----------------------------------------------------------------------------------------------- another watcher

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            return {
                **self.__dict__,
                "_lock": None,
                "_clock": None,
                "_window": None,
                "_queue": deque(self._queue),
                "_shares": {key: dict(shares) for key, shares in self._shares.items()},
                "_heard": {rank: dict(heard) for rank, heard in self._heard.items()},
                "_awaited": set(self._awaited),
                "_ever": set(self._ever),
            }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock(), _clock=time.monotonic, _window=OwnTimeWindow())


def _distinct(norms: Iterable[float]) -> list[float]:
    """Return the norms that differ from one another; all that are not a number are one.

    >>> _distinct([4.0, 3.0, 4.0000000001, 3.0])
    [3.0, 4.0]
    """
    found: list[float] = []
    for norm in sorted(norms, key=lambda one: (math.isnan(one), one)):
        if not found or not _are_one(found[-1], norm):
            found.append(norm)
    return found


def _are_one(first: float, second: float) -> bool:
    return math.isclose(first, second, rel_tol=SAME) or (math.isnan(first) and math.isnan(second))


def _root(parts: Sequence[float]) -> float:
    if len(parts) == 1:
        return parts[0]
    return math.nan if any(math.isnan(part) for part in parts) else math.sqrt(sum(part * part for part in parts))
