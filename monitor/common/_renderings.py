"""What was rendered of a state: made once, however many ask for it."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

T = TypeVar("T")
CAPACITY = 16
MAX_AGE_SECONDS = 1.0


class Renderings(Generic[T]):
    """Keep the forms in which a state was asked for until there is another state.

    Args:
        capacity: how many forms; of one too many the one goes that was not asked for for longest.
        seconds: how old a rendering may be though the state is the same: it may hold readings of its own.

    >>> renderings = Renderings()
    >>> [renderings.get("state", "text", lambda: [1]) is renderings.get("state", "text", lambda: [2])]
    [True]
    """

    def __init__(
        self, capacity: int = CAPACITY, seconds: float = MAX_AGE_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._capacity, self._seconds, self._clock = capacity, seconds, clock
        self._state: Any = None
        self._kept: OrderedDict[Hashable, T] = OrderedDict()
        self._expires = clock()
        self._lock = threading.Lock()

    def get(self, state: Any, form: Hashable, render: Callable[[], T]) -> T:
        """Return what ``render`` makes, or has made of an equal ``state`` in this form. Who asks meanwhile waits for
        it: it is not made twice."""
        with self._lock:
            if self._state != state or self._clock() >= self._expires:
                self._kept.clear()
                self._state, self._expires = state, self._clock() + self._seconds
            if form not in self._kept:
                self._kept[form] = render()
            self._kept.move_to_end(form)
            if len(self._kept) > self._capacity:
                self._kept.popitem(last=False)
            return self._kept[form]
