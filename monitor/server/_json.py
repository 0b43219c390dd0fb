"""JSON both ways: answers without a bare NaN, bodies without a surprise."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any


def encode(value: Any) -> bytes:
    """Return compact JSON; a float that is not finite becomes the string "NaN", "+Inf" or "-Inf".

    >>> encode({"loss": float("nan"), "step": 3})
    b'{"loss":"NaN","step":3}'
    """
    try:
        text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError):  # a record, or a float that is not finite
        text = json.dumps(plain(value), allow_nan=False, separators=(",", ":"))
    return text.encode()


def plain(value: Any) -> Any:
    """Return ``value`` in the types of JSON: records and mappings as objects, sequences as lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else spell(value)
    if value is None or isinstance(value, (str, int)):
        return value
    if names := _field_names(value.__class__):
        return {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    return str(value)


def spell(value: float) -> str:
    """Return the name that Prometheus gives to a float that is not finite.

    >>> spell(float("-inf"))
    '-Inf'
    """
    if math.isnan(value):
        return "NaN"
    return "+Inf" if value > 0 else "-Inf"


def decode(body: bytes) -> Any:
    """Parse a request body strictly: UTF-8, no repeated name, no NaN.

    Raises ValueError with a message for the caller.

    >>> decode(b'{"factor": 0.5}')
    {'factor': 0.5}
    """
    try:
        return json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_int=_bounded_int,
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"the body is not UTF-8 (byte {error.start}); send JSON in UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise ValueError("the body is nested too deeply; a command is one flat object") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        repeated = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"{repeated[:60]!r} is given more than once; give each field once")
    return result


def _bounded_int(text: str) -> int:
    if len(text) > 20:  # Python's own refusal of thousands of digits speaks of the interpreter
        raise ValueError(f"{text[:20]}... is too large a number")
    return int(text)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number; send a finite number")


@lru_cache(maxsize=64)
def _field_names(kind: Any) -> tuple[str, ...]:
    """Return the fields of a record; none for what is no record."""
    return tuple(field.name for field in dataclasses.fields(kind)) if dataclasses.is_dataclass(kind) else ()
