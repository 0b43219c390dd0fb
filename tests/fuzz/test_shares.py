"""Whatever comes for the shares of a run, from strangers or a rank, rank 0's watcher adds up those of the others."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor._records import Step
from monitor.ranks import Share
from monitor.ranks import _handshake as handshake
from monitor.ranks._share import pack, unpack
from tests.fuzz.effort import damaged, tried
from tests.ranks.test_travel import PATIENCE_SECONDS, SECRET, Leader, wait_for

MISCHIEF, GOOD = 1, 2
"""The rank that sends anything, and the one that must not suffer from it."""
SHARE = st.builds(
    Share,
    st.integers(0, 3) | st.integers(0, 2**16 - 1),
    st.integers(0, 50) | st.integers(0, 2**64 - 1),
    *[st.none() | st.floats()] * 6,
    st.booleans(),
)
SHARES = st.lists(SHARE, max_size=6)
FRAME = (SHARES.map(pack) | st.binary(max_size=130)).map(lambda body: struct.pack("<I", len(body)) + body)
SENT = st.lists(FRAME, max_size=4).map(b"".join)


class Ranks:
    """Rank 0's end, and a good rank that is connected to it for good."""

    def __init__(self) -> None:
        self.leader = Leader()
        self.good = self.connected(GOOD)
        self.num_steps = 0

    def connected(self, rank: int) -> socket.socket:
        """Return a connection of a rank that knows the secret."""
        connection = socket.create_connection(("127.0.0.1", self.leader.port), timeout=PATIENCE_SECONDS)
        nonce = connection.recv(handshake.NONCE_BYTES)
        connection.sendall(handshake.call(SECRET.encode(), rank, nonce, bytes(32)))
        assert len(connection.recv(32)) == 32
        return connection

    def make_step(self) -> Step:
        """Have rank 0 and the good rank make a step, and return what the run shows of it."""
        self.num_steps += 1
        rows = pack([Share(0, self.num_steps, loss=2.0)])
        self.good.sendall(struct.pack("<I", len(rows)) + rows)
        wait_for(lambda: self.leader.heard(GOOD) == self.num_steps, "the share of the good rank")
        self.leader.sums.put(Step("SGD", self.num_steps, self.num_steps, 0.0, None, 2.0, None))
        (step,) = self.leader.sums.take(is_last=True)
        assert isinstance(step, Step)
        return step


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    ranks = Ranks()
    yield ranks
    ranks.good.close()
    ranks.leader.receiver.stop()
    ranks.leader.receiver._thread.join(PATIENCE_SECONDS)
    assert not ranks.leader.receiver._thread.is_alive()
    assert ranks.leader.errors == []


@tried(150)
@given(SENT | SENT.flatmap(damaged))
def test_a_rank_that_sends_anything_costs_the_others_nothing(ranks: Ranks, sent: bytes) -> None:
    """It knows the secret: its own shares may be wrong, and those of the good rank are in each sum."""
    with ranks.connected(MISCHIEF) as connection, suppress(ConnectionError):
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(64)
    step = ranks.make_step()
    assert step.number == ranks.num_steps
    assert ranks.leader.sums.num_summed >= 2


@tried(100)
@given(st.binary(max_size=200))
def test_a_stranger_that_sends_anything_is_told_a_nonce_and_no_more(ranks: Ranks, sent: bytes) -> None:
    """Without the secret nothing is taken, whatever is sent."""
    with socket.create_connection(("127.0.0.1", ranks.leader.port), timeout=PATIENCE_SECONDS) as connection:
        told = b""
        with suppress(ConnectionError):
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(4096):
                told += part
    assert len(told) <= handshake.NONCE_BYTES
    assert ranks.make_step().loss == 2.0


@tried(300)
@given(SHARES)
def test_shares_come_back_as_they_went(shares: list[Share]) -> None:
    assert repr(unpack(pack(shares))) == repr(shares)


@tried(300)
@given(st.binary(max_size=400) | SHARES.map(pack).flatmap(damaged))
def test_any_bytes_are_shares_or_a_value_error(rows: bytes) -> None:
    try:
        found = unpack(rows)
    except ValueError:
        assert len(rows) % 59
    else:
        assert len(found) == len(rows) // 59
