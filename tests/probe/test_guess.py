"""The loss of a model that only guesses, as the graph of a classification loss tells it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from monitor.probe._guess import guess_loss


def logits(*shape: int) -> Tensor:
    return torch.zeros(shape, requires_grad=True) * 1.0


TEN, SEVEN = torch.arange(4), torch.zeros(4, 7, dtype=torch.long)


@pytest.mark.parametrize(
    ("loss", "classes"),
    [
        (functional.cross_entropy(logits(4, 10), TEN), 10),
        (functional.cross_entropy(logits(4, 10), TEN, weight=torch.arange(10.0)), 10),
        (functional.cross_entropy(logits(4, 3, 7), SEVEN), 3),
        (functional.cross_entropy(logits(4, 3, 7, 5), torch.zeros(4, 7, 5, dtype=torch.long)), 3),
        (functional.cross_entropy(logits(4, 7, 50).reshape(-1, 50).float(), SEVEN.reshape(-1)), 50),
        (functional.nll_loss(logits(4, 10).log_softmax(-1), TEN), 10),
        (functional.binary_cross_entropy_with_logits(logits(4, 10), torch.ones(4, 10)), 2),
    ],
)
def test_a_mean_cross_entropy_tells_its_classes(loss: Tensor, classes: int) -> None:
    """It is what the loss function itself gives for equal logits."""
    assert guess_loss(loss) == pytest.approx(math.log(classes))
    assert guess_loss(loss) == pytest.approx(loss.item())


@pytest.mark.parametrize(
    "loss",
    [
        functional.cross_entropy(logits(4, 10), TEN, reduction="sum"),
        functional.cross_entropy(logits(4, 10), TEN) / 4,
        functional.cross_entropy(logits(4, 10), TEN, label_smoothing=0.1),
        functional.nll_loss(logits(4, 10).log(), TEN),
        functional.mse_loss(logits(4), torch.ones(4)),
        torch.zeros(()),
        None,
    ],
)
def test_any_other_loss_tells_nothing(loss: Tensor | None) -> None:
    """A sum, a scaled or smoothed loss has another value for a guess, which is not worked out."""
    assert guess_loss(loss) is None


def test_hooks_on_saved_tensors_are_not_called() -> None:
    """Checkpointing recomputes a part of the model when a saved tensor is looked at."""

    def unpack(_: object) -> Tensor:
        raise AssertionError("a saved tensor was unpacked")

    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, unpack):
        loss = functional.cross_entropy(logits(4, 10), TEN)
    assert guess_loss(loss) == pytest.approx(math.log(10))
