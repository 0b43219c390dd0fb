"""The optimizers of a run by name, held by weak references: a run keeps none of them alive."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping

from torch.optim import Optimizer


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
