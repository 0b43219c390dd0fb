"""JSON schemas: those of the records are read off the records themselves, so that they cannot drift."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from monitor import _records
from monitor._records import MAX_REASON, MAX_STEPS
from monitor.server import _alertmanager, _bodies, _notifications

Schema = dict[str, Any]
_PRIMITIVES: dict[Any, Schema] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
    Any: {},
}
_RECORDS = (
    _records.ParamGroup,
    _records.Event,
    _records.GroupChange,
    _records.CommandRecord,
    _records.Histogram,
    _records.HostReading,
    _records.GpuReading,
    _records.Collection,
    _records.RunInfo,
    _records.OptimizerSnapshot,
    _records.Snapshot,
)


def ref(name: str) -> Schema:
    """Return a reference to a schema of the components."""
    return {"$ref": f"#/components/schemas/{name}"}


def components() -> dict[str, Schema]:
    """Return every schema by name."""
    schemas = {record.__name__: _of_record(record) for record in _RECORDS}
    snapshot = schemas.pop("Snapshot")
    snapshot["properties"]["commands_total"] = array(ref("CommandCount"))
    snapshot["properties"]["page"] = ref("PageAccess")
    snapshot["required"] = [*snapshot["required"], "page"]
    return schemas | {"Run": snapshot} | _hand_kept()


def array(items: Schema) -> Schema:
    """Return the schema of an array."""
    return {"type": "array", "items": items}


def record(properties: Mapping[str, Schema], optional: Sequence[str] = ()) -> Schema:
    """Return the schema of an object that holds these properties and no other."""
    required = [name for name in properties if name not in optional]
    return {
        "type": "object",
        "properties": dict(properties),
        "additionalProperties": False,
        **({"required": required} if required else {}),
    }


def _of_record(kind: type) -> Schema:
    hints = get_type_hints(kind)
    schema = record({field.name: _of(hints[field.name]) for field in dataclasses.fields(kind)})
    return schema | {"description": (kind.__doc__ or "").strip()}


def _of(hint: Any) -> Schema:
    if hint is float:
        return ref("Number")
    if hint in _PRIMITIVES:
        return dict(_PRIMITIVES[hint])
    if dataclasses.is_dataclass(hint):
        return ref(getattr(hint, "__name__", ""))
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_of(argument) for argument in arguments]}
    if origin is tuple:
        return array(_of(arguments[0]))
    return {"type": "object", "additionalProperties": _of(arguments[1])}  # a Mapping from str


def _hand_kept() -> dict[str, Schema]:
    string, integer = {"type": "string"}, {"type": "integer"}
    nullable = {"anyOf": [ref("Number"), {"type": "null"}]}
    numbers = array(nullable)
    return {
        "Number": {
            "description": "A float; what is not finite is a string, as in Prometheus' own API.",
            "anyOf": [{"type": "number"}, {"enum": ["NaN", "+Inf", "-Inf"]}],
        },
        "Problem": {
            "description": "RFC 9457 problem details. `field` names the part of the request that is at fault.",
            "type": "object",
            "properties": {
                "type": {"type": "string", "format": "uri-reference"},
                "status": integer,
                "title": string,
                "detail": string,
                "field": string,
            },
            "required": ["type", "status", "title", "detail"],
        },
        "CommandCount": record({"action": string, "source": string, "outcome": string, "count": integer}),
        "PageAccess": record({"can_control": {"type": "boolean"}}),
        "Events": record({"events": array(ref("Event")), "next": integer}),
        "GroupRate": record(
            {
                "optimizer": string,
                "param_group": integer,
                "name": {"type": ["string", "null"]},
                "scheduled": nullable,
                "factor": ref("Number"),
                "applied": nullable,
            }
        ),
        "LearningRates": record({"groups": array(ref("GroupRate")), "pending": array(ref("CommandRecord"))}),
        "History": {
            "description": "Columns of equal length per optimizer; a point stands for `count` steps.",
            "type": "object",
            "properties": {
                "since": integer,
                "next": integer,
                "resolution": {"type": "number"},
                "optimizers": {"type": "object", "additionalProperties": ref("Curves")},
                "system": {"type": "object"},
            },
            "required": ["since", "next", "optimizers"],
        },
        "Curves": {"type": "object", "properties": {"step": array(integer), "time": numbers, "loss": numbers}},
        "Targets": array(
            record({"targets": array(string), "labels": {"type": "object", "additionalProperties": string}})
        ),
        "Health": record({"status": {"const": "ok"}}),
        **_bodies_schemas(),
        **_alert_schemas(),
    }


def _bodies_schemas() -> dict[str, Schema]:
    group: Schema = {
        "anyOf": [
            {"type": "integer", "minimum": 0},
            {"type": "string", "minLength": 1, "maxLength": _bodies.MAX_NAME},
        ]
    }
    groups: Schema = array(group) | {"type": ["array", "null"], "minItems": 1, "maxItems": _bodies.MAX_GROUPS}
    fields: dict[str, Schema] = {
        "factor": {"type": "number", "exclusiveMinimum": 0, "description": "At most 1 unless the run allows more."},
        "groups": groups | {"description": "Param groups by index or name; null or absent: all."},
        "over_steps": {"type": "integer", "minimum": 0, "maximum": MAX_STEPS, "default": 0},
        "reason": {"type": "string", "maxLength": MAX_REASON, "default": ""},
    }
    optional = ("groups", "over_steps", "reason")
    return {
        "FactorCommand": record(fields, optional),
        "RestoreCommand": record({name: fields[name] for name in optional}, optional),
        "PlainCommand": record({"reason": fields["reason"]}, ("reason",)),
    }


def _alert_schemas() -> dict[str, Schema]:
    """Return those of the webhook. Alertmanager's own documents may have more fields: they are passed over."""
    texts: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
    alert: Schema = {
        "type": "object",
        "properties": {
            "status": {"enum": list(_notifications.STATUSES)},
            "labels": texts | {"description": "`run_id`, `remediation`, `remediation_factor` are read."},
            "annotations": texts | {"description": "`remediation_factor`, `summary` are read."},
            "startsAt": {"type": "string", "pattern": _notifications.TIME_PATTERN},
            "fingerprint": {"type": "string", "pattern": _notifications.FINGERPRINT_PATTERN},
        },
        "required": ["status", "labels", "startsAt", "fingerprint"],
    }
    notification: Schema = {
        "type": "object",
        "properties": {
            "version": {"const": "4"},
            "truncatedAlerts": {"type": "integer", "minimum": 0, "default": 0},
            "alerts": array(alert),
        },
        "required": ["version", "alerts"],
    }
    string: Schema = {"type": "string"}
    result = record(
        {
            "alert": string,
            "fingerprint": string,
            "outcome": {"enum": list(_alertmanager.OUTCOMES)},
            "detail": string,
            "command": {"type": ["string", "null"], "description": "See /api/v1/commands/{id}."},
        }
    )
    return {
        "AlertNotification": notification,
        "AlertResults": record(
            {
                "results": array(result),
                "truncated": {"description": "How many alerts Alertmanager has left out.", "type": "integer"},
                "left_out": {"description": "How many the run was not asked for: too many at once.", "type": "integer"},
            }
        ),
    }
