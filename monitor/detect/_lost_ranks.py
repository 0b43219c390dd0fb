"""``rank_lost``: a rank that has said nothing for too long, by what rank 0 knows of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from monitor._records import Event, RankReading


class LostRanks:
    """Give one event for each rank that is lost, and the same again with its end once the rank is back.

    >>> ranks = LostRanks()
    >>> [event.message for event in ranks.look([RankReading(1, "lost", host="b", step=7, last_seen_seconds=31.0)], 8)]
    ['rank 1 on b has said nothing for 31 s, since step 7: its process is gone, stopped or cut off']
    >>> [event.end_step for event in ranks.look([RankReading(1, "ok", host="b", step=9, last_seen_seconds=0.5)], 9)]
    [9]
    """

    def __init__(self) -> None:
        self._open: dict[int, Event] = {}

    def look(self, ranks: Iterable[RankReading], step: int) -> list[Event]:
        """Take what is known of the ranks at a step of the run; a rank of which nothing is known stays as it was."""
        ranks = tuple(ranks)
        gone = self._open.keys() - {one.rank for one in ranks} if ranks else ()
        left = [replace(self._open.pop(rank), end_step=step, message=_left(rank)) for rank in sorted(gone)]
        return left + [event for one in ranks if (event := self._look_at(one, step)) is not None]

    def _look_at(self, one: RankReading, step: int) -> Event | None:
        if one.state == "lost":
            return None if one.rank in self._open else self._start(one, step)
        if one.state == "not_attached":  # nothing is known: it was lost before the store was opened anew
            return None
        begun = self._open.pop(one.rank, None)
        return None if begun is None else replace(begun, end_step=step, message=_end_of(one))

    def _start(self, one: RankReading, step: int) -> Event:
        silent = one.last_seen_seconds or 0.0
        message = (
            f"rank {one.rank} on {one.host} has said nothing for {silent:.0f} s, since step {one.step}: its process is "
            "gone, stopped or cut off"
        )
        details = {"name": f"rank {one.rank}", "rank": one.rank, "host": one.host}
        event = Event("rank_lost", "critical", step, step, message, value=silent, details=details)
        self._open[one.rank] = event
        return event


def _end_of(one: RankReading) -> str:
    if one.state == "ended":
        return f"rank {one.rank} on {one.host} has ended its run at step {one.step}"
    return f"rank {one.rank} on {one.host} is back at step {one.step}"


def _left(rank: int) -> str:
    return f"rank {rank} is not one of the ranks any more: the process group was made anew without it"
