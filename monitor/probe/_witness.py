"""A parameter whose gradient is looked at before and after backward passes, and the choice of few among all."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from monitor.link import Pass

NUM_WITNESSES = 4
"""Witnesses that are kept beside those without which some pass would go unseen."""
Groups = Callable[[], Sequence[Mapping[str, Any]]]
UNSEEN = -1
ASSUMED = -1
"""Stands for the id of a gradient that was not looked at."""


class Witness:
    """A parameter that is looked at.

    ``grad_id``, ``version`` and ``alive`` are those of its gradient when last seen; ``passes`` are the backward passes
    that are in it, ``newest`` is the last that was. ``touched`` has one bit for each of the first passes, set if it has
    reached the parameter; ``fresh`` is the version of a gradient that the first pass of a step has made, if it is
    always the same. ``num_assumed`` first passes more are taken to reach it as they always did, without a look.

    The parameter goes by its place, the ``index``-th of the ``group``-th param group, and its id. With a weak reference
    in its place torch could not swap it (``torch.utils.swap_tensors``).
    """

    __slots__ = (
        "_groups", "alive", "fresh", "grad_id", "group", "index", "is_plain", "is_sharded", "newest", "num_assumed",
        "num_looks", "parameter_id", "passes", "size", "touched", "version",
    )  # fmt: skip

    def __init__(self, groups: Groups, group: int, index: int) -> None:
        self._groups, self.group, self.index = groups, group, index
        parameter = groups()[group]["params"][index]
        self.parameter_id = id(parameter)
        self.is_plain = type(parameter) in (Tensor, torch.nn.Parameter)
        self.is_sharded = hasattr(parameter, "placements") or getattr(parameter, "_fsdp_flattened", False)
        self.size = parameter.numel()
        self.grad_id = self.touched = self.num_assumed = self.num_looks = 0
        self.version: int | None = 0
        self.alive: Any = None
        self.fresh: int | None = UNSEEN
        self.passes: list[Pass] = []
        self.newest: Pass | None = None
        self.see(self.gradient())

    def parameter(self) -> Tensor | None:
        """Return the parameter; None once another one, or none, stands in its place."""
        try:
            parameter: Tensor = self._groups()[self.group]["params"][self.index]
        except (IndexError, KeyError):
            return None
        return parameter if id(parameter) == self.parameter_id else None

    def gradient(self) -> Tensor | None:
        """Return the gradient, of a distributed parameter the local part of it: what changes in place."""
        parameter = self.parameter()
        gradient = None if parameter is None else parameter.grad
        return gradient if self.is_plain or gradient is None else getattr(gradient, "_local_tensor", gradient)

    def add(self, one: Pass, gradient: Tensor) -> None:
        """Note a pass that has reached the parameter. It does so once: what a loop does to the gradient of a step that
        it makes within the pass, such as zero it, is no more of it."""
        if one is self.newest:
            return
        version = version_of(gradient)
        if not self.passes and self.fresh != version:
            self.fresh = version if self.fresh == UNSEEN else None
        self.passes.append(one)
        self.newest = one

    def notice(self, one: Pass) -> bool:
        """Look after a pass; return whether it has reached the parameter. One function without detours, as it runs for
        each of many optimizers."""
        try:
            parameter = self._groups()[self.group]["params"][self.index]
        except (IndexError, KeyError):
            return False
        gradient = parameter.grad
        if gradient is None or id(parameter) != self.parameter_id or gradient.is_inference():
            return False
        version, alive = gradient._version, self.alive
        if id(gradient) == self.grad_id and version == self.version and (alive is None or not alive.expired()):
            return False
        if self.newest is not one:
            if self.fresh != version and not self.passes:
                self.fresh = version if self.fresh == UNSEEN else None
            self.passes.append(one)
            self.newest = one
        self.grad_id, self.version, self.alive = id(gradient), version, _weak(gradient)
        return True

    def has_changed(self, gradient: Tensor | None) -> bool:
        """Tell whether the gradient is another than the one last seen."""
        if gradient is None:
            return self.grad_id != 0
        if self.grad_id == ASSUMED:
            self.grad_id, self.alive = id(gradient), None
        return self.is_other(gradient) or version_of(gradient) != self.version

    def is_other(self, gradient: Tensor) -> bool:
        """Tell whether the gradient is another tensor than the one last seen, whose id it may have taken over."""
        return id(gradient) != self.grad_id or (self.alive is not None and self.alive.expired())

    def see(self, gradient: Tensor | None) -> None:
        """Remember the gradient as it is now. Not the tensor itself: that would keep its memory."""
        if gradient is None:
            self.grad_id, self.version, self.alive = 0, 0, None
        else:
            self.grad_id, self.version, self.alive = id(gradient), version_of(gradient), _weak(gradient)


_WEAK: Callable[[Tensor], Any] = getattr(torch._C, "_WeakTensorRef", lambda _: None)


def _weak(gradient: Tensor) -> Any:
    """Return what tells that a gradient is gone; None where torch may swap it, which this would keep it from."""
    is_swapped = type(gradient) is not Tensor or torch.__future__.get_swap_module_params_on_conversion()
    return None if is_swapped else _WEAK(gradient)


def version_of(gradient: Tensor) -> int | None:
    """Return how often a gradient was changed in place; None of one made in inference mode, which does not count."""
    return None if gradient.is_inference() else gradient._version


def is_dear(witness: Witness) -> tuple[bool, bool, int]:
    """Order witnesses by what it costs to look at them."""
    return not witness.is_plain, witness.size == 0, witness.size


def chosen_of(witnesses: Sequence[Witness], alone: set[int]) -> list[Witness]:
    """Keep the smallest of the parameters that were reached by the same passes: for the sets that were most often
    reached, and as many more as every pass needs to be seen. Of those that are reached together one whose gradient was
    not cleared ``alone``, as the ids of those say."""
    smallest: dict[int, Witness] = {}
    for witness in sorted(witnesses, key=lambda w: (w.parameter_id in alone, -len(w.passes), *is_dear(w))):
        smallest.setdefault(witness.touched, witness)
    ranked = sorted((w for w in smallest.values() if w.touched), key=lambda w: -w.touched.bit_count())
    chosen, rest = ranked[:NUM_WITNESSES], ranked[NUM_WITNESSES:]
    seen = functools.reduce(operator.or_, (w.touched for w in chosen), 0)
    while rest:
        best = max(rest, key=lambda w: (w.touched & ~seen).bit_count())
        if not best.touched & ~seen:
            break
        chosen.append(best)
        rest.remove(best)
        seen |= best.touched
    return chosen
