"""The loss of a model that only guesses, read off the autograd graph of a classification loss."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

_MEAN = 1
"""Number of the reduction ``mean``."""
_NEGATIVE_LIKELIHOODS = ("NllLossBackward0", "NllLoss2DBackward0")
_BINARY = "BinaryCrossEntropyWithLogitsBackward0"
_MOST_VIEWS = 4


def guess_loss(roots: Any) -> float | None:
    """Return ln of the number of classes for a mean cross-entropy, ln 2 for a mean binary one, None for other losses.

    Reads names, shapes and numbers of graph nodes and no tensor: a saved tensor may be unpacked by hooks that recompute
    a part of the model.

    >>> loss = torch.nn.functional.cross_entropy(torch.zeros(4, 10, requires_grad=True), torch.tensor([0, 1, 2, 3]))
    >>> guess_loss(loss) == math.log(10), guess_loss(loss / 2)
    (True, None)
    """
    node: Any = roots.grad_fn if isinstance(roots, Tensor) else None
    if node is None or getattr(node, "_saved_reduction", None) != _MEAN:
        return None
    if node.name() == _BINARY:
        return math.log(2)
    if node.name() not in _NEGATIVE_LIKELIHOODS:
        return None
    for _ in range(_MOST_VIEWS):
        node = node.next_functions[0][0] if node.next_functions else None
        if node is None:
            return None
        if node.name() == "LogSoftmaxBackward0":
            shape, dimension = node._input_metadata[0].shape, node._saved_dim
            classes = int(shape[dimension if dimension < len(shape) else dimension - 2**64])  # torch gives it unsigned
            return math.log(classes) if classes > 1 else None
    return None
