"""How the watchers of one run know each other: each proves that it knows the run's secret, and none sends it.

Challenge and answer with HMAC-SHA256 (RFC 2104), both ways. What follows is neither encrypted nor signed: like the
gradients of the ranks it travels in a network that the training trusts.
"""

from __future__ import annotations

import hashlib
import hmac
import struct

NONCE_BYTES = 32
RANK = struct.Struct("<I")
CALL_BYTES = RANK.size + NONCE_BYTES + hashlib.sha256().digest_size
LENGTH = struct.Struct("<I")
MAX_BYTES = 2**20
"""Of one frame."""
OVER = b"\0"
"""What rank 0's watcher says once its run is over: nobody need look for it any more."""


def call(secret: bytes, rank: int, server_nonce: bytes, own_nonce: bytes) -> bytes:
    """Return what a rank answers to the nonce that it was sent."""
    who = RANK.pack(rank) + own_nonce
    return who + _proof(secret, b"rank", who + server_nonce)


def rank_of(secret: bytes, server_nonce: bytes, called: bytes) -> int | None:
    """Return the rank that has called; None where it does not know the secret."""
    who, proof = called[: RANK.size + NONCE_BYTES], called[RANK.size + NONCE_BYTES :]
    if not hmac.compare_digest(proof, _proof(secret, b"rank", who + server_nonce)):
        return None
    return int(RANK.unpack_from(who)[0])


def answer(secret: bytes, called: bytes) -> bytes:
    """Return what rank 0's watcher answers, to prove that it is the one."""
    return _proof(secret, b"rank 0", called)


def is_answer(secret: bytes, called: bytes, answered: bytes) -> bool:
    """Tell whether an answer proves it."""
    return hmac.compare_digest(answered, answer(secret, called))


def _proof(secret: bytes, what: bytes, content: bytes) -> bytes:
    return hmac.new(secret, what + b"\0" + content, hashlib.sha256).digest()
