"""The optimizers of a run by name: wrappers taken off, held by weak references. A run keeps none of them alive."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from typing import Any

from torch.optim import Optimizer

from monitor.common import as_name


class WeakOptimizers(Mapping[str, Optimizer]):
    """Map names to the optimizers that are still there. ``keys`` names all there were; ``items`` and ``values`` leave
    out those that are gone.

    >>> optimizers = WeakOptimizers({"main": optimizer})
    >>> [name for name, one in optimizers.items()]
    ['main']
    """

    def __init__(self, optimizers: Mapping[str, Optimizer]) -> None:
        self._references = {name: weakref.ref(one) for name, one in optimizers.items()}

    def __getitem__(self, name: str) -> Optimizer:
        found = self._references[name]()
        if found is None:
            raise KeyError(f"optimizer {name!r} is gone")
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._references)

    def __len__(self) -> int:
        return len(self._references)

    def items(self) -> list[tuple[str, Optimizer]]:  # type: ignore[override]
        """Return the names and optimizers that are there; each stays alive for as long as the list."""
        found = [(name, reference()) for name, reference in self._references.items()]
        return [(name, one) for name, one in found if one is not None]

    def values(self) -> list[Optimizer]:  # type: ignore[override]
        """Return the optimizers that are there."""
        return [one for _, one in self.items()]


def named(optimizer: Any) -> dict[str, Optimizer]:
    """Return name -> optimizer, wrappers taken off."""
    if isinstance(optimizer, Mapping):
        inner = {key: unwrapped(one) for key, one in optimizer.items()}
        found = {_key(key, one): one for key, one in inner.items()}
        if len(found) < len(optimizer):
            raise ValueError(
                f"two of the optimizers {list(optimizer)} would go by one name; name one of them otherwise"
            )
    elif isinstance(optimizer, list | tuple):
        several = [unwrapped(one) for one in optimizer]
        classes = [type(one).__name__ for one in several]
        is_telling = len(set(classes)) == len(classes)
        found = {classes[i] if is_telling else _key(i, one): one for i, one in enumerate(several)}
    else:
        one = unwrapped(optimizer)
        found = {type(one).__name__: one}
    if not found:
        raise ValueError(f"attach needs at least one optimizer, got an empty {type(optimizer).__name__}")
    if len({id(one) for one in found.values()}) < len(found):
        raise ValueError(f"the same optimizer stands under two names in {list(found)}; name it once")
    return found


def _key(name: Any, optimizer: Optimizer) -> str:
    """Return a name as text; a number with the class before it, as a number alone is the index of a param group."""
    text = as_name(name)
    return f"{type(optimizer).__name__}-{text}" if text.isdigit() else text


def unwrapped(optimizer: Any) -> Optimizer:
    """Return the optimizer whose ``step`` makes the updates."""
    inner = optimizer
    for _ in range(4):  # accelerate wraps an optimizer; Lookahead and SAM have one of their own make the step
        below = _below(inner)
        if below is None:
            break
        inner = below
    if not isinstance(inner, Optimizer):
        raise TypeError(
            "optimizer must be a torch.optim.Optimizer, a list of them or a mapping of names to them, "
            f"got {type(optimizer).__name__}"
        )
    return inner


def _below(outer: Any) -> Optimizer | None:
    """Return the one optimizer that an object holds, if it is for all of the parameters that the object itself has."""
    below = getattr(outer, "optimizer", None)
    if isinstance(below, Optimizer):
        return below
    held = {id(one): one for one in getattr(outer, "__dict__", {}).values() if isinstance(one, Optimizer)}
    if len(held) != 1 or id(outer) in held:
        return None
    (below,) = held.values()
    return below if not isinstance(outer, Optimizer) or _ids_of(outer) <= _ids_of(below) else None


def _ids_of(optimizer: Optimizer) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group["params"]}
