"""openapi.json, which is kept by hand, says what the server does, no more and no less."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from monitor import _records
from monitor.server import _alertmanager, _app, _bodies, _commands, _notifications
from tests.server.fake_run import FakeRun
from tests.server.schemas import differences, reference, schema_of_record
from tests.server.wire import CONTROL, JSON, OPENAPI, READ

API = "/api/v1"


def test_the_document_is_valid() -> None:
    """Checked against the OpenAPI 3.1 schema itself."""
    validate(OPENAPI)


def test_the_document_is_served_as_it_is(client: FlaskClient) -> None:
    """What the API serves is the file, byte for byte."""
    assert client.get(f"{API}/openapi.json", headers=READ).data == _app.OPENAPI_FILE.read_bytes()


def test_every_route_is_described_and_nothing_else(app: Flask) -> None:
    """Paths and methods of the application and of the document are the same set."""
    served = {
        (re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule), method.lower(), rule.endpoint)
        for rule in app.url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
    }
    described = {
        (path, method, operation["operationId"])
        for path, methods in OPENAPI["paths"].items()
        for method, operation in methods.items()
    }
    assert described - served == set(), "openapi.json describes what is not served"
    assert served - described == set(), "openapi.json lacks a route"


def test_operation_ids_are_unique() -> None:
    """Client generators name functions after them."""
    ids = [operation["operationId"] for methods in OPENAPI["paths"].values() for operation in methods.values()]
    assert len(ids) == len(set(ids))


RECORDS = (
    _records.ParamGroup, _records.Event, _records.GroupChange, _records.CommandRecord, _records.Histogram,
    _records.HostReading, _records.GpuReading, _records.Collection, _records.RankReading, _records.RunInfo,
    _records.OptimizerSnapshot,
)  # fmt: skip


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_a_record_is_described_field_by_field(record: type) -> None:
    """Names, types and order of the required fields are those of the record."""
    path = f"components.schemas.{record.__name__}"
    written = OPENAPI["components"]["schemas"][record.__name__]
    assert list(differences(schema_of_record(record), written, path)) == []


def test_the_state_of_a_run_is_described_field_by_field() -> None:
    """It is a Snapshot with counts as a list, as JSON has no tuples for keys, and what the page may do."""
    expected = schema_of_record(_records.Snapshot)
    expected["properties"]["commands_total"] = {"type": "array", "items": reference("CommandCount")}
    expected["properties"]["page"] = reference("PageAccess")
    expected["required"].append("page")
    written = OPENAPI["components"]["schemas"]["Run"]
    assert list(differences(expected, written, "components.schemas.Run")) == []


@pytest.mark.parametrize("route", _commands.ROUTES, ids=lambda route: route.action)
def test_the_body_of_a_command_is_described(route: Any) -> None:
    """The fields that a command takes, and those that it needs, are those of its route."""
    operation = OPENAPI["paths"][API + route.rule][route.method.lower()]
    name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[1]
    written = OPENAPI["components"]["schemas"][name]
    assert (tuple(written["properties"]), tuple(written.get("required", ()))) == (route.allowed, route.required)
    assert operation["requestBody"]["required"] is bool(route.required)


def _at(path: str) -> Any:
    """Return what stands at a path of openapi.json; a slash parts the names."""
    found: Any = OPENAPI
    for key in path.split("/"):
        found = found[int(key)] if isinstance(found, list) else found[key.replace("|", "/")]
    return found


ALERT = "components/schemas/AlertNotification/properties/alerts/items/properties"
RESULT = "components/schemas/AlertResults/properties/results/items/properties"
FACTOR = "components/schemas/FactorCommand/properties"
HISTORY = "paths/|api|v1|history/get/parameters"
ACTOR = "paths/|api|v1|pause/post/parameters/2"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (f"{ALERT}/status/enum", list(_notifications.STATUSES)),
        (f"{ALERT}/startsAt/pattern", _notifications.TIME_PATTERN),
        (f"{ALERT}/fingerprint/pattern", _notifications.FINGERPRINT_PATTERN),
        (f"{RESULT}/outcome/enum", list(_alertmanager.OUTCOMES)),
        (f"{FACTOR}/groups/maxItems", _bodies.MAX_GROUPS),
        (f"{FACTOR}/groups/items/anyOf/1/maxLength", _bodies.MAX_NAME),
        (f"{FACTOR}/over_steps/maximum", _records.MAX_STEPS),
        (f"{FACTOR}/reason/maxLength", _records.MAX_REASON),
        (f"{HISTORY}/1/schema/maximum", _app.MAX_POINTS),
        (f"{ACTOR}/name", _commands.ACTOR_HEADER),
        (f"{ACTOR}/schema/pattern", f"^{_commands.ACTOR_PATTERN}$"),
    ],
)
def test_a_bound_is_the_one_that_the_server_holds(path: str, value: Any) -> None:
    """Limits, patterns and lists of values are those of the code."""
    assert _at(path) == value, f"{path} in openapi.json"


def test_each_operation_of_a_kind_is_described_alike() -> None:
    """The bodies of all commands bound a field in one way, and all commands take the same headers."""
    schemas = OPENAPI["components"]["schemas"]
    full = schemas["FactorCommand"]["properties"]
    for name in ("RestoreCommand", "PlainCommand"):
        for field, written in schemas[name]["properties"].items():
            assert list(differences(full[field], written, f"components.schemas.{name}.{field}")) == []
    operations = {r.action: OPENAPI["paths"][API + r.rule][r.method.lower()] for r in _commands.ROUTES}
    for action, operation in operations.items():
        for part in ("parameters", "responses"):
            assert operation[part] == operations["pause"][part], f"{part} of {action} and of pause"


def check(response: Any, path: str, method: str) -> None:
    """Hold a real answer against the schema that the document gives for its status."""
    operation = OPENAPI["paths"][path][method]
    described = operation["responses"][str(response.status_code)]
    if "$ref" in described:
        described = OPENAPI["components"]["responses"][described["$ref"].rsplit("/", 1)[1]]
    schema = described["content"][response.mimetype]["schema"]
    Draft202012Validator({**schema, "components": OPENAPI["components"]}).validate(json.loads(response.data))


@pytest.mark.parametrize(
    ("path", "url"),
    [
        (f"{API}/run", f"{API}/run"),
        (f"{API}/history", f"{API}/history?points=20"),
        (f"{API}/history", f"{API}/history?points=x"),
        (f"{API}/events", f"{API}/events"),
        (f"{API}/lr", f"{API}/lr"),
        (f"{API}/commands/{{id}}", f"{API}/commands/c0001"),
        (f"{API}/commands/{{id}}", f"{API}/commands/none"),
        (f"{API}/targets", f"{API}/targets"),
        ("/healthz", "/healthz"),
    ],
)
@pytest.mark.parametrize("steps", [0, 1200])
@pytest.mark.parametrize("headers", [CONTROL, {}])
def test_answers_fit_their_schema(
    client: FlaskClient, run: FakeRun, path: str, url: str, steps: int, headers: dict[str, str]
) -> None:
    """Real answers, a NaN loss and refusals among them, are valid by the document."""
    client.post(f"{API}/lr/reduce", json={"factor": 0.5}, headers=CONTROL)
    run.advance(steps)
    client.post(f"{API}/lr/restore", headers=CONTROL)
    check(client.get(url, headers=headers), path, "get")


def test_the_answer_of_an_empty_run_fits(app: Flask, client: FlaskClient, run: FakeRun) -> None:
    """Before the first step nearly everything is null."""
    run.__init__()  # type: ignore[misc]
    for path in ("/run", "/history", "/events", "/lr"):
        check(client.get(API + path, headers=READ), API + path, "get")


@pytest.mark.parametrize(
    ("path", "method", "body", "headers", "status"),
    [
        ("/lr", "put", {"factor": 0.5}, CONTROL, 202),
        ("/lr/reduce", "post", {"factor": 0.5, "groups": [0, "decay"]}, CONTROL, 202),
        ("/lr/restore", "post", {"over_steps": 10}, CONTROL, 202),
        ("/stop", "post", {"reason": "done"}, CONTROL, 202),
        ("/lr/reduce", "post", {"factor": 0}, CONTROL, 422),
        ("/lr/reduce", "post", [], CONTROL, 400),
        ("/lr/undo", "post", {}, CONTROL, 409),
        ("/pause", "post", {}, READ, 403),
        ("/pause", "post", {}, {}, 401),
    ],
)
def test_commands_and_their_refusals_fit_their_schema(
    client: FlaskClient, path: str, method: str, body: Any, headers: dict[str, str], status: int
) -> None:
    """Bodies that the server takes are valid by the document, and so is every answer."""
    response = client.open(API + path, method=method.upper(), data=json.dumps(body), headers={**JSON, **headers})
    assert response.status_code == status
    check(response, API + path, method)
    reference = OPENAPI["paths"][API + path][method]["requestBody"]["content"]["application/json"]["schema"]
    validator = Draft202012Validator({**reference, "components": OPENAPI["components"]})
    assert validator.is_valid(body) is (status not in (400, 422))
