"""JSON both ways: answers without a bare NaN, bodies without a surprise."""

from __future__ import annotations

import dataclasses
import json
import math
import types
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


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


def to_record(kind: Any, value: Any) -> Any:
    """Return what :func:`plain` was given, of type ``kind``: a record, or a type of one of its fields.

    A record may lack fields that have a default; fields that it does not know are passed over.

    >>> from monitor._records import Histogram
    >>> to_record(Histogram, plain(Histogram((1.0,), (2, 0), float("nan"))))
    Histogram(bounds=(1.0,), counts=(2, 0), sum=nan)

    Raises:
        ValueError: for a value of another type.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _to_one_of(inner, value)
    if names := _field_names(kind):
        return _to_dataclass(kind, names, value)
    if origin is tuple and isinstance(value, list):
        return tuple(to_record(inner[0], item) for item in value)
    if origin is Mapping and isinstance(value, dict):
        return {key: to_record(inner[1], item) for key, item in value.items()}
    if kind is float and type(value) in (int, float, str):
        return float(value)  # also of "NaN", "+Inf" and "-Inf"
    if kind is Any or type(value) is kind or (origin is Literal and value in inner):
        return value
    raise ValueError(f"expected {getattr(kind, '__name__', kind)}, got {repr(value)[:60]}")


def _to_one_of(kinds: tuple[Any, ...], value: Any) -> Any:
    if value is None and types.NoneType in kinds:
        return None
    fitting = [kind for kind in kinds if kind is not types.NoneType]
    return to_record(type(value) if type(value) in fitting else fitting[0], value)


def _to_dataclass(kind: Any, names: tuple[str, ...], value: Any) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"expected {kind.__name__}, got {repr(value)[:60]}")
    hints = _hints(kind)
    try:
        return kind(**{name: to_record(hints[name], value[name]) for name in names if name in value})
    except TypeError as error:
        raise ValueError(f"{kind.__name__} lacks a field: {error}") from error


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


@lru_cache(maxsize=64)
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)
