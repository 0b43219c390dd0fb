"""This run's part in the sums over the ranks: rank 0's takes the shares of the others, any other's sends its own."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from typing import Any

from monitor._records import Step
from monitor.link import FailureReporter, Hello
from monitor.ranks import ShareReceiver, ShareSender, StepSums, share_of

END_SECONDS = 2.0
"""How long the end of a watcher process waits for the last shares, or for them to be sent."""


class Shares:
    """Take or send the shares of steps.

    Args:
        hello: the run.
        failures: where what is contained is noted.
        on_joined: called on another thread with the id of rank 0's run, once this rank's steps are part of it.
    """

    def __init__(self, hello: Hello, failures: FailureReporter, on_joined: Callable[[str], None]) -> None:
        self._failures = failures
        self._places = {key: i for i, key in enumerate(hello.optimizers)}
        self.rank = hello.rank
        takes = hello.listener is not None and hello.rank == 0 and hello.num_ranks > 1
        self.sums = StepSums(hello.num_ranks, hello.optimizers) if takes else None
        """Where the steps of rank 0 wait for the shares of the others; None: on other ranks, and with one alone."""
        self._hello = hello
        self._receiver: ShareReceiver | None = None
        self._sender = ShareSender(on_joined, self._note_unreachable)

    def open(self, sums: Any) -> None:
        """Begin to take shares, into the sums as another watcher may have left them."""
        self.sums = sums
        if sums is None or self._hello.listener is None:
            return
        listening = socket.socket(fileno=os.dup(self._hello.listener))
        self._receiver = ShareReceiver(listening, self._hello.secret, sums, self._failures.of("link"))
        self._receiver.start()

    def join(self, place: Mapping[str, Any], rank: int) -> None:
        """Send the shares to rank 0's watcher; ``place`` is what its run has said in the store."""
        self.rank = rank
        self._sender.join(place["host"], place["port"], place["secret"], place["run_id"], rank)

    def add_step(self, step: Step) -> None:
        """Keep this rank's share of a step, on a rank other than 0."""
        if self.rank:
            self._sender.put(share_of(step, self._places[step.optimizer]))

    def send(self) -> None:
        """Send what was kept."""
        self._sender.send()

    def close(self, seconds: float = END_SECONDS, *, is_over: bool = True) -> None:
        """Send the last shares, and take no more; wait ``seconds`` at most. Unless the run ``is_over``, another watcher
        takes over."""
        self._sender.close(seconds, is_over=is_over)
        if self._receiver is not None:
            self._receiver.stop(is_over=is_over)

    def _note_unreachable(self, error: Exception) -> None:
        line = f"{error}; the loss and the norm of the run are without this rank's share; training continues"
        self._failures.note("link", error, line=line)
