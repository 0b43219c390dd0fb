"""Gradients that the training loop itself has changed between backward and step: what the loss of the step is then.

Who scales the loss by hand divides the gradients by the same constant; who sums micro-batches divides them by their
number. Both show in how much smaller the gradients have become. Anything else, such as a clip by hand, says nothing
about the loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes


def root_factor(roots: Any) -> float | None:
    """Return the constant above 1 by which a loss was multiplied last before it is back-propagated; None if by none.

    >>> loss = torch.ones((), requires_grad=True) * 3.0
    >>> root_factor(loss * 1024.0), root_factor(loss / 0.25), root_factor(loss / 4), root_factor(loss.exp())
    (1024.0, 4.0, None, None)
    """
    node = roots.grad_fn if isinstance(roots, Tensor) else None
    if node is None or node.name() not in ("MulBackward0", "DivBackward0") or len(node.next_functions) != 2:
        return None
    first, second = (following for following, _ in node.next_functions)
    constant = getattr(node, "_saved_other" if second is None else "_saved_self", None)
    if (first is None) is (second is None) or constant is None or constant.numel() != 1 or not constant.is_cpu:
        return None
    with _disable_current_modes():  # a dispatch mode, such as FlopCounterMode, is handed a plain number in its place
        value = float(constant)
    if node.name() == "DivBackward0":
        value = 1.0 / value if value and second is None else 1.0
    return value if value > 1.0 else None


def norm_of(gradient: Tensor | None) -> float | None:
    """Return the norm of a gradient on the CPU; None where it would have to be waited for."""
    if gradient is None or gradient.device.type != "cpu" or gradient.layout is not torch.strided:
        return None
    with torch.no_grad():
        plain = gradient.detach()
        return float((plain.abs() if plain.is_complex() else plain).double().norm())


def tolerance_of(gradient: Tensor | None) -> float:
    """Return how far a ratio of two norms of a gradient may be from the one expected: it is rounded twice."""
    is_rounded = gradient is not None and (gradient.is_floating_point() or gradient.is_complex())
    return 2 * torch.finfo(gradient.dtype).eps if gradient is not None and is_rounded else 0.0


def multiplier(
    before: float | None, after: float | None, factor: float | None, num_passes: int, tolerance: float = 1e-6
) -> float | None:
    """Return what the losses of a step are to be multiplied by, now that the norm of its gradients has changed; None if
    they cannot be known.

    >>> multiplier(1024.0, 1.0, 1024.0, 1), multiplier(4.0, 1.0, None, 4), multiplier(5.0, 1.0, None, 1)
    (0.0009765625, 0.25, 1.0)
    >>> multiplier(5.0, 5.0, 1024.0, 1), multiplier(1024.0, 0.3, 1024.0, 1)
    (1.0, None)
    """
    if before and after:
        if math.isclose(after, before, rel_tol=tolerance):
            return 1.0
        for divisor in _divisors(factor, num_passes):
            if math.isclose(after * divisor, before, rel_tol=tolerance):
                return 1.0 / divisor
    return 1.0 if factor is None else None


def _divisors(factor: float | None, num_passes: int) -> Sequence[float]:
    known = [] if factor is None else [factor, factor * num_passes]
    return [*known, num_passes] if num_passes > 1 else known
