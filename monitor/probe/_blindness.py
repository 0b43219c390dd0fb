"""Backward passes that no step of an attached optimizer follows: what is said about it, and the likely cause."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from monitor.probe._made import MADE
from monitor.probe._steps import StepProbe

NUM_DISCARDED = 20
"""Times in a row that the gradients of an optimizer are cleared without a step of any that is attached."""
NUM_PUT_ASIDE = 10_000
"""The same where the parameters stay as they are: a loop may put gradients aside before each step."""
NUM_UNREACHED = 64
"""Backward passes in a row that reach no parameter of any that is attached."""
NUM_DISCARDED_BESIDE = 1000
"""The same as the first for one optimizer, while others that are attached make their steps."""


class Blindness:
    """Say once of each optimizer that its steps are not seen. Reads counters only; called by the recorder's thread."""

    def __init__(self, probes: Sequence[StepProbe]) -> None:
        self._probes = probes
        self._told: set[str] = set()

    def look(self) -> list[tuple[str, str]]:
        """Return a message and the name of each optimizer that has become blind."""
        is_dark = all(_is_blind(probe, NUM_DISCARDED) for probe in self._probes)
        limit = NUM_DISCARDED if is_dark else NUM_DISCARDED_BESIDE
        blind = [p for p in self._probes if p.key not in self._told and _is_blind(p, limit, may_be_unreached=is_dark)]
        self._told |= {probe.key for probe in blind}
        return [(_message(probe), probe.key) for probe in blind]


def _is_blind(probe: StepProbe, num_discarded: int, *, may_be_unreached: bool = True) -> bool:
    found = probe.attribution
    is_unreached = may_be_unreached and found.num_unreached >= NUM_UNREACHED
    return found.num_discarded >= (num_discarded if found.is_updated else NUM_PUT_ASIDE) or is_unreached


def _message(probe: StepProbe) -> str:
    found, optimizer = probe.attribution, probe.optimizer
    name = probe.key if optimizer is None else type(optimizer).__name__
    if found.num_unreached >= NUM_UNREACHED:
        seen = f"{found.num_unreached} backward passes have reached no parameter of {name}"
    else:
        seen = f"the gradients of {name} were cleared {found.num_discarded} times"
    return f"{seen}, and {name}.step() was not called: {_cause(optimizer)}"


def _cause(optimizer: Any) -> str:
    if optimizer is None:
        return "the optimizer that was attached is gone; attach the one that trains"
    ids = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for reference in list(MADE):
        other = reference()
        if other is not None and other is not optimizer and ids & _ids_of(other):
            return f"an optimizer made later ({type(other).__name__}) holds the same parameters; attach that one"
    return "something else makes the updates; attach the torch optimizer whose step() is called"


def _ids_of(optimizer: Any) -> set[int]:
    return {id(p) for group in getattr(optimizer, "param_groups", ()) for p in group["params"]}
