"""The optimizers that are made, and those that are given param groups, while others are watched."""

from __future__ import annotations

import weakref
from collections import deque
from typing import Any

from monitor.probe._watched import probe_of, report

MADE: deque[weakref.ref[Any]] = deque(maxlen=64)
"""The latest: one of them may have taken an attached one's place."""


def watch_init(original: Any) -> Any:
    """Remember every optimizer that is made."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        original(self, *args, **kwargs)
        try:
            MADE.append(weakref.ref(self))
        except Exception as error:  # noqa: BLE001 - must not reach the training loop
            report(error)

    return __init__


def watch_add_param_group(original: Any) -> Any:
    """Notice that an attached optimizer has more parameters than before."""

    def add_param_group(self: Any, param_group: Any) -> None:
        original(self, param_group)
        try:
            probe = probe_of(self)
            if probe is not None:
                probe.on_new_parameters()
        except Exception as error:  # noqa: BLE001 - must not reach the training loop
            report(error)

    return add_param_group
