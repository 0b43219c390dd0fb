"""Names of param groups."""

from __future__ import annotations

from typing import Any

import pytest

from monitor.common import group_names

HEAD, BODY = (
    {"param_names": ["net.head.weight", "net.head.bias"]},
    {"param_names": ["net.body.0.weight", "net.body.1.w"]},
)


@pytest.mark.parametrize(
    ("groups", "names"),
    [
        ([{"weight_decay": 0.1}, {"weight_decay": 0.0}], ["decay", "no_decay"]),
        ([{"weight_decay": 0.0}, {"weight_decay": 0.01, "name": "body"}], ["no_decay", "body"]),
        ([{"weight_decay": 0.0}, {"weight_decay": 0.01, "name": "no_decay"}], [None, "no_decay"]),
        ([{"weight_decay": 0.1}, {"weight_decay": 0.2}], [None, None]),
        ([{"weight_decay": 0.1}, {"weight_decay": 0.1, "name": "head"}], [None, "head"]),
        (
            [{"weight_decay": 0.1}, {"weight_decay": 0.0}, {"weight_decay": 0.0, "name": "embedding"}],
            ["decay", "no_decay", "embedding"],
        ),
        ([{"weight_decay": 0.1}], [None]),
        ([{"weight_decay": 0.1, "name": 3}], ["3"]),
        ([{}, {}], [None, None]),
        ([], []),
        ([{**HEAD, "weight_decay": 0.1}, {**BODY, "weight_decay": 0.1}], ["net.head", "net.body"]),
        ([{**HEAD, "weight_decay": 0.1}, {**BODY, "weight_decay": 0.0}], ["decay", "no_decay"]),
        (
            [{**part, "weight_decay": decay} for part in (HEAD, BODY) for decay in (0.0, 0.1)],
            ["net.head.no_decay", "net.head.decay", "net.body.no_decay", "net.body.decay"],
        ),
        ([{"param_names": ["0.weight"]}, {"param_names": ["1.weight"]}], [None, None]),
        ([{"param_names": ["weight"]}, HEAD], [None, None]),
        ([{"param_names": []}, HEAD], [None, None]),
    ],
)
def test_a_group_goes_by_what_tells_it_from_the_others(groups: list[dict[str, Any]], names: list[str | None]) -> None:
    """By its own name, else by weight decay, module or both; without one where that is no difference."""
    assert group_names(groups) == names
