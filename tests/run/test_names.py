"""Names of runs and of their param groups."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import monitor
from monitor.run._identity import name_of_script


@pytest.mark.parametrize(
    ("script", "name"),
    [
        ("/work/cifar/train.py", "cifar"),
        ("/work/cifar/Train.py", "cifar"),
        ("/work/cifar/scripts/main.py", "cifar"),
        ("/work/cifar/__main__.py", "cifar"),
        ("/work/cifar/resnet.py", "resnet"),
        ("/work/cifar/finetune.py", "cifar"),
        ("/train.py", "train"),
        ("/src/train/main.py", "main"),
    ],
)
def test_a_script_whose_name_says_nothing_goes_by_its_folder(script: str, name: str) -> None:
    """And by its own name where no folder says more."""
    assert name_of_script(Path(script)) == name


def test_a_group_without_a_name_is_named_and_changed_by_its_weight_decay() -> None:
    """``run.lr``, the snapshot, the command and its outcome all say no_decay."""
    body, head = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    groups = [{"params": [body], "weight_decay": 0.1}, {"params": [head], "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    with monitor.attach(optimizer, serve=False) as run:
        command = run.reduce_lr(0.5, groups=["no_decay"])
        (body.square().sum() + head.square().sum()).backward()
        optimizer.step()
        run.flush()
        assert [row.name for row in run.lr] == ["decay", "no_decay"]
        assert [group.name for group in run.snapshot().optimizers[0].groups] == ["decay", "no_decay"]
        assert [(change.param_group, change.name) for change in command.record.changes] == [(1, "no_decay")]
    assert all("name" not in group for group in optimizer.param_groups)
