"""A tripwire in the forward passes, for times without a step: who evaluates, generates or rolls out has not stalled.

It costs nothing while steps come. Armed, it stands in the place of ``torch.nn.Module.__call__``, and the first call, on
whichever thread, puts the original back before it goes through: torch.compile never traces a function of ours.
"""

from __future__ import annotations

import os
from time import perf_counter
from typing import Any

from torch.nn import Module

from monitor.probe._compilation import skipped

_ARMED: list[tuple[Any, Any]] = []
"""What stands in the place of ``Module.__call__`` and what stood there, while it is armed."""
_SEEN = [0.0]


def last_forward() -> float:
    """Return when the tripwire was last set off (``perf_counter``); 0 for never."""
    return _SEEN[0]


def arm() -> None:
    """Have the next forward pass noted."""
    if _ARMED:
        return
    original = vars(Module)["__call__"]

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        disarm()
        _SEEN[0] = perf_counter()
        return original(self, *args, **kwargs)

    _ARMED.append((skipped(__call__), original))
    Module.__call__ = _ARMED[0][0]  # type: ignore[method-assign]


def disarm() -> None:
    """Put the original back; somebody who patched after us keeps their patch."""
    while _ARMED:
        try:
            ours, original = _ARMED.pop()
        except IndexError:  # another thread was quicker
            return
        if vars(Module)["__call__"] is ours:
            Module.__call__ = original  # type: ignore[method-assign]


os.register_at_fork(after_in_child=disarm)
