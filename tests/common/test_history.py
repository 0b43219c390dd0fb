"""The history in bounded memory, whatever its rows are."""

from __future__ import annotations

import pickle

import pytest

from monitor.common import BoundedHistory, Bucket


def filled(length: int, size: int = 8) -> BoundedHistory[Bucket]:
    history = BoundedHistory[Bucket](size)
    for cursor in range(1, length + 1):
        history.append(Bucket(cursor))
    return history


def shown(history: BoundedHistory[Bucket], cursor: float = 0, points: int = 10**6) -> list[tuple[float, int]]:
    return [(bucket.cursor, bucket.count) for bucket in history.after(cursor, points)]


@pytest.mark.parametrize("length", [0, 1, 7, 8, 16, 17, 1000, 1025])
def test_every_row_is_in_one_bucket(length: int) -> None:
    """Whatever its length, the whole is there, in order and within the bound."""
    found = shown(filled(length))
    assert sum(count for _, count in found) == length
    assert len(found) <= 16
    assert [cursor for cursor, _ in found] == sorted({cursor for cursor, _ in found})
    assert not found or found[-1][0] == length


@pytest.mark.parametrize("points", [1, 2, 3, 5, 8])
def test_fewer_points_are_evenly_spaced_and_end_with_the_newest(points: int) -> None:
    """All points but the first stand for equally many rows."""
    found = shown(filled(8), points=points)
    assert len(found) <= points
    assert found[-1][0] == 8
    assert len({count for _, count in found[1:]}) <= 1


def test_the_newest_rows_are_kept_one_by_one() -> None:
    """From a cursor on that the ring still holds, each row is a point."""
    assert shown(filled(1000), 993) == [(cursor, 1) for cursor in range(994, 1001)]


def test_a_history_travels_to_another_process() -> None:
    """A pickled history continues where it was, with a lock of its own."""
    history = pickle.loads(pickle.dumps(filled(100)))
    history.append(Bucket(101))
    assert shown(history) == shown(filled(101))


def test_what_was_read_does_not_change_what_is_kept() -> None:
    """Buckets are handed out as copies."""
    history = filled(100)
    before = shown(history)
    history.after(0, 3)[0].merge(Bucket(5))
    history.until(40).merge(Bucket(5))
    assert shown(history) == before


def test_what_came_before_is_one_history_with_what_follows() -> None:
    """Buckets of any size are taken first; new rows join them at the same resolution, and the bound holds."""
    history = BoundedHistory[Bucket](8)
    history.begin_with(filled(1000).after(0, 8))
    before = len(shown(history))
    for cursor in range(1001, 3001):
        history.append(Bucket(cursor))
    found = shown(history)
    assert before <= 8
    assert sum(count for _, count in found) == 3000
    assert len(found) <= 16
    assert max(count for _, count in found) <= 4 * 3000 // 8
    assert shown(history, 2995) == [(cursor, 1) for cursor in range(2996, 3001)]


@pytest.mark.parametrize("length", [6, 8, 12, 1000])
def test_what_is_cut_is_gone_and_the_rest_is_whole(length: int) -> None:
    """The rows from one on are handed out and kept no more, however many there were; a bucket that began before stays,
    and others follow it."""
    history = filled(length)
    end = length - 3
    gone = history.cut(lambda bucket: bucket.cursor - bucket.count < end)
    assert [bucket.cursor for bucket in gone][-1:] == [length][: len(gone)]
    assert end <= sum(count for _, count in shown(history)) <= length
    assert length > 8 or shown(history) == shown(filled(end))
    assert history.after(end + 3, 100) == []
    history.append(Bucket(length + 1))
    assert shown(history)[-1][0] == length + 1
    assert shown(history)[0] == shown(filled(length))[0]
    assert end + 1 <= sum(count for _, count in shown(history)) <= length + 1
