"""Shares on their way from one watcher to another, over real sockets."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from monitor.ranks import Share, ShareReceiver, ShareSender, StepSums
from monitor.ranks import _handshake as handshake
from monitor.ranks._share import pack, unpack

SECRET = "a secret of the run"
PATIENCE_SECONDS = 20.0


def wait_for(is_so: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < deadline, f"{what} was waited for in vain"
        time.sleep(0.01)


class Leader:
    """Rank 0's end."""

    def __init__(self, num_ranks: int = 3, listener: socket.socket | None = None) -> None:
        self.errors: list[Exception] = []
        self.sums = StepSums(num_ranks, ["SGD"])
        self.listener = listener or socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.receiver = ShareReceiver(self.listener, SECRET, self.sums, self.errors.append)
        self.receiver.start()

    def heard(self, rank: int) -> int:
        """The last step of which a rank has sent its share."""
        return self.sums._heard.get(rank, {}).get(0, 0)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a watcher that cannot be reached told at the second attempt."""
    monkeypatch.setattr("monitor.ranks._sender.GRACE_SECONDS", 0.01)
    monkeypatch.setattr("monitor.ranks._sender.RETRY_SECONDS", 0.05)


@pytest.fixture
def leader() -> Iterator[Leader]:
    leader = Leader()
    yield leader
    leader.receiver.stop()
    leader.receiver._thread.join(PATIENCE_SECONDS)
    assert not leader.receiver._thread.is_alive()


class Follower:
    """Another rank's end."""

    def __init__(self) -> None:
        self.joined: list[str] = []
        self.errors: list[str] = []
        self.sender = ShareSender(self.joined.append, lambda error: self.errors.append(str(error)))

    def send(self, *numbers: int) -> None:
        for number in numbers:
            self.sender.put(Share(0, number, loss=float(number)))
        self.sender.send()


@pytest.fixture
def follower() -> Iterator[Follower]:
    follower = Follower()
    yield follower
    follower.sender.close(0.5)


def test_rows_come_back_as_they_went() -> None:
    shares = [
        Share(0, 1, 2.0, 3.0, 4.0, 5.0, 0.5, 0.25, is_skipped=True),
        Share(65535, 2**60),
        Share(1, 2, loss=float("inf"), shards=0.0),
    ]
    assert unpack(pack(shares)) == shares
    with pytest.raises(ValueError, match="50 bytes are no whole number of rows of 59 bytes"):
        unpack(pack(shares)[:50])


def test_what_was_kept_before_the_address_was_known_is_sent(leader: Leader, follower: Follower) -> None:
    follower.send(1, 2)
    follower.sender.join("127.0.0.1", leader.port, SECRET, "run-1", 2)
    wait_for(lambda: leader.heard(2) == 2, "the share")
    follower.send(3)
    wait_for(lambda: leader.heard(2) == 3, "the share")
    assert follower.joined == ["run-1"]
    assert leader.sums.joined == {2}
    follower.sender.close(PATIENCE_SECONDS)
    wait_for(lambda: not leader.sums.joined, "the end")


def test_a_lost_connection_is_made_anew_and_loses_nothing(leader: Leader, follower: Follower) -> None:
    """Another watcher of rank 0's run takes over at the same address."""
    spare = leader.listener.dup()
    follower.sender.join("127.0.0.1", leader.port, SECRET, "run-1", 1)
    follower.send(1)
    wait_for(lambda: leader.heard(1) == 1, "the share")
    leader.receiver.stop(is_over=False)
    leader.receiver._thread.join(PATIENCE_SECONDS)
    follower.send(2, 3)
    other = Leader(listener=spare)
    try:
        wait_for(lambda: other.heard(1) == 3, "the share")
        assert sorted(other.sums._shares) == [(0, 1), (0, 2), (0, 3)]
    finally:
        other.receiver.stop()


@pytest.mark.parametrize("secret", ["another secret", ""])
def test_who_does_not_know_the_secret_is_told_nothing(leader: Leader, follower: Follower, secret: str) -> None:
    follower.send(1)
    follower.sender.join("127.0.0.1", leader.port, secret, "run-1", 1)
    wait_for(lambda: follower.errors, "the error")
    assert f"rank 0's watcher at 127.0.0.1:{leader.port} cannot be reached" in follower.errors[0]
    assert (leader.heard(1), follower.joined) == (0, [])


def test_no_share_goes_to_one_that_only_listens(follower: Follower) -> None:
    """A squatter on the port sends a nonce, as the watcher would, and what it likes as an answer."""
    got = bytearray()

    def squat(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, suppress(ConnectionError):
            connection.sendall(bytes(handshake.NONCE_BYTES))
            got.extend(connection.recv(4096))
            connection.sendall(bytes(32))
            got.extend(connection.recv(4096))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=squat, args=(listener,), daemon=True)
        thread.start()
        follower.send(1)
        follower.sender.join("127.0.0.1", listener.getsockname()[1], SECRET, "run-1", 1)
        thread.join(PATIENCE_SECONDS)
    assert len(got) == handshake.CALL_BYTES
    assert SECRET.encode() not in got
    assert follower.joined == []


@pytest.mark.parametrize("rank", [0, 3, 2**32 - 1])
def test_a_rank_that_does_not_exist_is_refused(leader: Leader, follower: Follower, rank: int) -> None:
    follower.send(1)
    follower.sender.join("127.0.0.1", leader.port, SECRET, "run-1", rank)
    wait_for(lambda: follower.errors, "the error")
    assert follower.joined == []


def test_strangers_keep_no_rank_out(leader: Leader, follower: Follower, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that say nothing are closed in time, those beyond a bound at once."""
    monkeypatch.setattr("monitor.ranks._receiver.HANDSHAKE_SECONDS", 0.5)
    strangers = [socket.create_connection(("127.0.0.1", leader.port)) for _ in range(200)]
    follower.send(1)
    follower.sender.join("127.0.0.1", leader.port, SECRET, "run-1", 1)
    wait_for(lambda: leader.heard(1) == 1, "the share")
    for one in strangers:
        one.close()
    assert leader.errors == []


@pytest.mark.parametrize("frame", [b"\xff\xff\xff\xff", b"\x05\x00\x00\x00abcde", b"\x3b\x00\x00\x00" + b"\xff" * 59])
def test_broken_frames_of_a_rank_cost_that_rank_alone(leader: Leader, follower: Follower, frame: bytes) -> None:
    """Too long, cut, or nonsense."""
    with socket.create_connection(("127.0.0.1", leader.port)) as connection:
        nonce = connection.recv(handshake.NONCE_BYTES)
        connection.sendall(handshake.call(SECRET.encode(), 2, nonce, bytes(32)))
        assert len(connection.recv(32)) == 32
        connection.sendall(frame)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(4096):
            pass
    follower.send(1)
    follower.sender.join("127.0.0.1", leader.port, SECRET, "run-1", 1)
    wait_for(lambda: leader.heard(1) == 1, "the share")
    assert leader.errors == []


def test_a_watcher_that_cannot_be_reached_is_told_once(follower: Follower) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    follower.sender.join("127.0.0.1", port, SECRET, "run-1", 1)
    wait_for(lambda: follower.errors, "the error")
    time.sleep(0.3)
    assert len(follower.errors) == 1


def test_a_run_that_is_over_is_looked_for_no_more(leader: Leader, follower: Follower) -> None:
    """Its other ranks may train on for long, and nothing is said."""
    follower.sender.join("127.0.0.1", leader.port, SECRET, "run-1", 1)
    follower.send(1)
    wait_for(lambda: leader.heard(1) == 1, "the share")
    leader.receiver.stop()
    follower.send(2)
    assert follower.sender._thread is not None
    follower.sender._thread.join(PATIENCE_SECONDS)
    assert not follower.sender._thread.is_alive()
    assert follower.errors == []


def test_the_end_does_not_wait_for_a_watcher_that_is_not_there(follower: Follower) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # accepts, and says nothing
        follower.send(1)
        follower.sender.join("127.0.0.1", listener.getsockname()[1], SECRET, "run-1", 1)
        start = time.monotonic()
        follower.sender.close(0.2)
        assert time.monotonic() - start < PATIENCE_SECONDS / 2


def test_an_end_while_the_thread_starts_waits_for_it(
    leader: Leader, follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is over at once hears of rank 0's watcher at the moment at which it ends."""
    errors: list[BaseException] = []

    def close() -> None:
        try:
            follower.sender.close(PATIENCE_SECONDS)
        except RuntimeError as error:
            errors.append(error)

    class Thread(threading.Thread):
        def start(self) -> None:
            if closing.ident is None:
                closing.start()
                closing.join(0.2)  # it has failed by then, or waits
            super().start()

    follower.send(1)
    closing = threading.Thread(target=close)
    monkeypatch.setattr("monitor.ranks._sender.threading.Thread", Thread)
    follower.sender.join("127.0.0.1", leader.port, SECRET, "run-1", 1)
    closing.join(PATIENCE_SECONDS)
    assert errors == []
    assert follower.joined[:1] == ["run-1"]


def test_what_waits_is_bounded(follower: Follower) -> None:
    follower.send(*range(1, 20_001))
    assert len(follower.sender._waiting) == 16_384
