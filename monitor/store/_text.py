"""Records as JSON text and back. NaN and infinities are written as Python does (``NaN``, ``-Infinity``): they come back
as what they were, as do integers of any size."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

MAX_TEXT = 2**14
"""Characters that a message, a reason or another text of a record may have; a longer one loses its middle."""
MAX_RECORD = 2**17
"""Characters of one record; one that is longer still, with all its texts cut, loses its details."""
_MAX_DEPTH = 16
_MAX_BITS = 8192
"""Python refuses to read or write integers of more than 4300 digits as text."""


def to_text(value: Any) -> str:
    """Return a record as JSON. It may hold anything: what JSON cannot is kept as its type's name.

    >>> to_text({"loss": float("nan"), "steps": 2**70})
    '{"loss":NaN,"steps":1180591620717411303424}'
    """
    try:
        plain = _plain(value, _MAX_DEPTH)
    except Exception as error:  # noqa: BLE001 - what is not ours may raise anything when it is looked at
        plain = f"left out: {type(error).__name__}"
    text = json.dumps(plain, separators=(",", ":"))
    if len(text) <= MAX_RECORD:
        return text
    note = f"left out: {len(text)} characters"
    if isinstance(plain, dict):
        short = {key: item for key, item in plain.items() if not isinstance(item, (dict, list))}
        text = json.dumps({**short, "left_out": note}, separators=(",", ":"))
    return text if len(text) <= MAX_RECORD else json.dumps(note)


def _plain(value: Any, depth: int) -> Any:
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        return f"left out: an integer of {value.bit_length()} bits"
    if value is None or isinstance(value, (int, float)):
        return value
    if isinstance(value, str):
        return value if len(value) <= MAX_TEXT else f"{value[: MAX_TEXT // 2 - 1]}…{value[-MAX_TEXT // 2 :]}"
    if depth == 0:
        return "…"
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name), depth - 1) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key)[:MAX_TEXT]: _plain(item, depth - 1) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item, depth - 1) for item in value]
    return type(value).__name__


def from_text(text: str) -> Any:
    """Return what :func:`to_text` was given, records as dicts.

    Raises:
        ValueError: for what is not JSON.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
