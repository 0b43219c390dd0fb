"""The JSON schemas that the records of a run amount to, and where a description differs from them."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

Schema = dict[str, Any]
_PRIMITIVES: dict[Any, Schema] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
    Any: {},
}


def schema_of_record(kind: type) -> Schema:
    """Return the schema of a record: each field by its type, all of them required, no others."""
    hints = get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    return {
        "type": "object",
        "properties": {name: _of(hints[name]) for name in names},
        "additionalProperties": False,
        "required": names,
    }


def _of(hint: Any) -> Schema:
    if hint is float:
        return reference("Number")
    if hint in _PRIMITIVES:
        return dict(_PRIMITIVES[hint])
    if dataclasses.is_dataclass(hint):
        return reference(getattr(hint, "__name__", ""))
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_of(argument) for argument in arguments]}
    if origin is tuple:
        return {"type": "array", "items": _of(arguments[0])}
    return {"type": "object", "additionalProperties": _of(arguments[1])}  # a Mapping from str


def reference(name: str) -> Schema:
    """Return a reference to a schema of the components."""
    return {"$ref": f"#/components/schemas/{name}"}


def differences(expected: Any, written: Any, path: str = "") -> Iterator[str]:
    """Yield what to mend, a line a place. Descriptions are for people and may say what they like."""
    if isinstance(expected, dict) and isinstance(written, dict):
        for key in sorted({*expected, *written} - {"description"}):
            place = f"{path}.{key}".lstrip(".")
            if key not in written:
                yield f"{place} is missing: {expected[key]}"
            elif key not in expected:
                yield f"{place} is written and has no counterpart in the code"
            else:
                yield from differences(expected[key], written[key], place)
    elif expected != written:
        yield f"{path} is {written}, in the code {expected}"
