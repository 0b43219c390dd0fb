"""One command for one Idempotency-Key, however often the request is sent."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from monitor._records import CommandRecord
from monitor.server._problems import HttpProblem

KEEP_SECONDS = 24 * 3600.0
MAX_KEYS = 4096
MAX_KEY_LENGTH = 255


@dataclass(frozen=True, slots=True)
class _Answer:
    request: bytes
    record: CommandRecord
    expires: float


class IdempotencyKeys:
    """Remember the commands that were accepted under a key, for 24 hours, at most ``capacity`` of them.

    A key belongs to the credential that used it. Refusals are not kept: what was refused may be sent again.

    >>> from monitor._records import CommandRecord
    >>> keys = IdempotencyKeys(clock=lambda: 0.0)
    >>> record = CommandRecord(id="c1", action="reduce", source="api", created=0.0)
    >>> [keys.once("control:token", "k1", b"body", lambda: record)[1] for _ in range(2)]
    [False, True]
    """

    def __init__(self, capacity: int = MAX_KEYS, clock: Callable[[], float] = time.monotonic) -> None:
        self._capacity, self._clock = capacity, clock
        self._answers: OrderedDict[tuple[str, str], _Answer] = OrderedDict()
        self._lock = threading.Lock()

    def once(
        self, owner: str, key: str, request: bytes, submit: Callable[[], CommandRecord]
    ) -> tuple[CommandRecord, bool]:
        """Return the record of the first such request, and whether it is a repetition.

        Raises HttpProblem 422 where the key came with another request. Submitting only puts a command in a queue,
        so the lock is held over it: two equal requests at once are one command.
        """
        with self._lock:
            self._forget()
            answer = self._answers.get((owner, key))
            if answer is None:
                record = submit()
                self._answers[owner, key] = _Answer(request, record, self._clock() + KEEP_SECONDS)
                return record, False
        if answer.request != request:
            detail = f"The Idempotency-Key {key[:60]!r} came with another request before; use a new one."
            raise HttpProblem(422, detail, field="Idempotency-Key")
        return answer.record, True

    def _forget(self) -> None:
        now = self._clock()
        while self._answers:
            oldest = next(iter(self._answers.values()))
            if oldest.expires > now and len(self._answers) < self._capacity:
                return
            self._answers.popitem(last=False)


def check_key(key: str) -> str:
    """Return ``key`` if it can be one.

    >>> check_key("8e03978e-40d5-43dd-bc93-6894a57f9324")
    '8e03978e-40d5-43dd-bc93-6894a57f9324'
    """
    if not (0 < len(key) <= MAX_KEY_LENGTH and key.isascii() and key.isprintable()):
        detail = f"The Idempotency-Key must be 1 to {MAX_KEY_LENGTH} printable ASCII characters, got {key[:60]!r}."
        raise HttpProblem(400, detail, field="Idempotency-Key")
    return key
