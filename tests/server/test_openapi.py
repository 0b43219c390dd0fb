"""The OpenAPI document says what the server does, no more and no less."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from monitor.server._openapi import openapi
from tests.server.fake_run import FakeRun
from tests.server.wire import CONTROL, JSON, READ

API = "/api/v1"


def test_the_document_is_valid() -> None:
    """Checked against the OpenAPI 3.1 schema itself."""
    validate(openapi())


def test_the_document_is_served(client: FlaskClient) -> None:
    """What the API serves is the whole document."""
    assert client.get(f"{API}/openapi.json", headers=READ).json == json.loads(json.dumps(openapi()))


def test_every_route_is_described_and_nothing_else(app: Flask) -> None:
    """Paths and methods of the application and of the document are the same set."""
    served = {
        (re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule), method.lower(), rule.endpoint)
        for rule in app.url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
    }
    described = {
        (path, method, operation["operationId"])
        for path, methods in openapi()["paths"].items()
        for method, operation in methods.items()
    }
    assert described == served


def test_operation_ids_are_unique() -> None:
    """Client generators name functions after them."""
    ids = [operation["operationId"] for methods in openapi()["paths"].values() for operation in methods.values()]
    assert len(ids) == len(set(ids))


def check(response: Any, path: str, method: str) -> None:
    """Hold a real answer against the schema that the document gives for its status."""
    operation = openapi()["paths"][path][method]
    described = operation["responses"][str(response.status_code)]
    if "$ref" in described:
        described = openapi()["components"]["responses"][described["$ref"].rsplit("/", 1)[1]]
    schema = described["content"][response.mimetype]["schema"]
    Draft202012Validator({**schema, "components": openapi()["components"]}).validate(json.loads(response.data))


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
    reference = openapi()["paths"][API + path][method]["requestBody"]["content"]["application/json"]["schema"]
    validator = Draft202012Validator({**reference, "components": openapi()["components"]})
    assert validator.is_valid(body) is (status not in (400, 422))
