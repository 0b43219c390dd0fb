"""Autograd graphs behind what is back-propagated: which leaves they lead to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from monitor.probe._compilation import untraced

MAX_NODES = 50_000
"""Nodes of an autograd graph that are walked at most."""


class Restricted(NamedTuple):
    """What is back-propagated to some tensors only: ``backward(inputs=...)``."""

    tensors: Any
    inputs: Sequence[Tensor]


@untraced
def reaches(roots: Any, parameters: set[int]) -> bool:
    """Tell whether the autograd graph behind some tensors leads to one of the parameters, given by id.

    The nodes outlive the backward pass for as long as the tensors do. False for a graph that is too large to tell.
    """
    if isinstance(roots, Restricted):
        return any(id(one) in parameters for one in roots.inputs)
    return any(id(getattr(node, "variable", None)) in parameters for node in _nodes(roots))


@untraced
def has_leaf(roots: Any, shapes: set[torch.Size]) -> bool:
    """Tell whether the autograd graph behind some tensors leads to a leaf of one of these shapes, or to the flat
    parameter that FullyShardedDataParallel makes of several."""
    leaves = (getattr(node, "variable", None) for node in _nodes(roots))
    return any(
        leaf is not None and (leaf.shape in shapes or hasattr(leaf, "_unpadded_unsharded_size")) for leaf in leaves
    )


def _nodes(roots: Any) -> Iterator[Any]:
    roots = roots.tensors if isinstance(roots, Restricted) else roots
    tensors = roots if isinstance(roots, list | tuple) else (roots,)
    pending = [t.grad_fn for t in tensors if isinstance(t, Tensor) and t.grad_fn is not None]
    seen = set(pending)
    while pending and len(seen) < MAX_NODES:
        node = pending.pop()
        yield node
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                pending.append(following)
