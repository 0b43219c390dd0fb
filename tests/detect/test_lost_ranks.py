"""``rank_lost``: one event for each rank, which ends when the rank is back."""

from __future__ import annotations

from typing import Any

from monitor._records import RankReading
from monitor.detect import LostRanks
from monitor.recorder._events import EventLog


def reading(rank: int, state: Any, step: int = 7) -> RankReading:
    return RankReading(rank, state, "run", f"host-{rank}", step, 0.1, 2.0, 31.0 if state == "lost" else 0.5)


def test_each_rank_is_told_once() -> None:
    """However long it is lost; the ends find their own starts in the log, in any order."""
    ranks, log = LostRanks(), EventLog()
    first = [log.add(one, 1.0) for one in ranks.look([reading(1, "lost"), reading(2, "lost"), reading(3, "ok")], 9)]
    assert [event.details["rank"] for event in first] == [1, 2]
    assert ranks.look([reading(1, "lost"), reading(2, "lost")], 9) == []
    (back,) = [log.add(one, 2.0) for one in ranks.look([reading(1, "lost"), reading(2, "ok", 12)], 12)]
    assert (back.id, back.end_step, back.message) == (first[1].id, 12, "rank 2 on host-2 is back at step 12")
    assert log.active["rank_lost"]
    (over,) = [log.add(one, 3.0) for one in ranks.look([reading(1, "ended", 8), reading(2, "ok", 13)], 13)]
    assert (over.id, over.message) == (first[0].id, "rank 1 on host-1 has ended its run at step 8")
    assert not log.active["rank_lost"]
    assert log.totals["rank_lost"] == 2


def test_what_is_not_known_changes_nothing() -> None:
    """While the store does not answer there are no readings: whoever was lost is neither back nor lost anew."""
    ranks = LostRanks()
    assert len(ranks.look([reading(1, "lost")], 9)) == 1
    assert ranks.look([], 9) == []
    assert ranks.look([RankReading(1)], 9) == []  # the store was opened anew, and the rank has said nothing there
    assert ranks.look([reading(1, "lost")], 9) == []


def test_a_rank_that_is_in_the_table_no_more_is_not_lost_for_ever() -> None:
    """As after the process group was made anew with fewer."""
    ranks = LostRanks()
    (lost,) = ranks.look([reading(1, "ok"), reading(2, "lost")], 9)
    (over,) = ranks.look([reading(1, "ok")], 12)
    assert (over.details, over.start_step, over.end_step) == (lost.details, 9, 12)
    assert over.message == "rank 2 is not one of the ranks any more: the process group was made anew without it"
    assert ranks.look([reading(1, "ok")], 13) == []


def test_a_rank_that_is_late_or_missing_is_not_lost() -> None:
    """It is shown as what it is."""
    assert LostRanks().look([reading(1, "behind"), reading(2, "ended"), RankReading(3)], 9) == []
