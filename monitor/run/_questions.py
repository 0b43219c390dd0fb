"""The questions that the training process asks its watcher, and the answers for which their askers wait."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

Words = tuple[int, str, tuple[Any, ...]]
"""Number of a question, what is asked, arguments."""


class Questions:
    """Ask from any thread. ``send`` takes the words of each question."""

    def __init__(self, send: Callable[[Words], None]) -> None:
        self._send = send
        self._numbers = itertools.count(1)
        self._open: dict[int, _Question] = {}

    def ask(self, what: str, *arguments: Any, timeout: float, default: Any) -> Any:
        """Return the answer to a question; ``default`` where there is none within ``timeout`` seconds."""
        number = next(self._numbers)
        question = self._open[number] = _Question(default, (number, what, arguments))
        self._send(question.words)
        try:
            question.is_answered.wait(timeout)
        finally:
            self._open.pop(number, None)
        return question.answer

    def take_answer(self, number: int, answer: Any) -> None:
        """Take an answer; nobody waits for one that is late."""
        question = self._open.get(number)
        if question is not None:
            question.answer = answer
            question.is_answered.set()

    def still_open(self) -> list[Words]:
        """Return the questions without an answer, to be asked again."""
        return [question.words for question in list(self._open.values())]

    def give_up(self) -> None:
        """Let every question have what stands for its answer."""
        for question in list(self._open.values()):
            question.is_answered.set()


class _Question:
    def __init__(self, default: Any, words: Words) -> None:
        self.words = words
        self.answer = default
        self.is_answered = threading.Event()
