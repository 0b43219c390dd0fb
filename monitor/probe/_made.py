"""The optimizers that are made while others are watched: one of them may have taken an attached one's place."""

from __future__ import annotations

import weakref
from collections import deque
from typing import Any

from monitor.probe._watched import report

MADE: deque[weakref.ref[Any]] = deque(maxlen=64)


def watch_init(original: Any) -> Any:
    """Remember every optimizer that is made."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        original(self, *args, **kwargs)
        try:
            MADE.append(weakref.ref(self))
        except Exception as error:  # noqa: BLE001
            report(error)

    return __init__
