"""Names of param groups: those that they have, and for the others what tells them apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from monitor.common._names import as_name

Group = Mapping[str, Any]


def group_names(groups: Sequence[Group]) -> list[str | None]:
    """Return the name of each param group, None for one without.

    A group that the script has not named goes by its weight decay (``decay``, ``no_decay``), else by the module that
    its parameters are of, else by both. The last two need an optimizer that was given ``model.named_parameters()``. It
    has no name where that does not tell every group from all others, and where it is the only one.

    >>> group_names([{"weight_decay": 0.1}, {"weight_decay": 0.0}])
    ['decay', 'no_decay']
    >>> group_names([{"weight_decay": 0.1}, {"weight_decay": 0.1, "name": "head"}])
    [None, 'head']
    >>> group_names([{"weight_decay": 0.0}])
    [None]
    """
    given = [None if (name := group.get("name")) is None else as_name(name) for group in groups]
    for describe in (_decay_of, _module_of, _module_and_decay_of):
        described = [as_name(describe(group)) for group in groups]
        found = [one for one, name in zip(described, given, strict=True) if name is None]
        is_telling = len(set(described)) > 1 and len(set(found)) == len(found) and all(found)
        if is_telling and not set(found) & set(given):
            return [one if name is None else name for one, name in zip(described, given, strict=True)]
    return given


def _decay_of(group: Group) -> str:
    decay = group.get("weight_decay")
    if not isinstance(decay, int | float):
        return ""
    return "decay" if decay else "no_decay"


def _module_of(group: Group) -> str:
    """Return the innermost module that holds all parameters of the group; empty for the model itself, and where it is a
    number, which would be taken for the index of a group."""
    names = group.get("param_names") or ("",)
    pairs = zip(min(names), max(names), strict=False)  # what these two begin with, all names do
    found = "".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)).rpartition(".")[0]
    return "" if found.isdigit() else found


def _module_and_decay_of(group: Group) -> str:
    parts = _module_of(group), _decay_of(group)
    return ".".join(part for part in parts if part)
