"""What the server's tests share: a fake run, its application and a real server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from flask import Flask
from flask.testing import FlaskClient

from monitor.server import HttpServer, Security, create_app
from tests.server.fake_run import READ_TOKEN, TOKEN, FakeRun


@pytest.fixture
def run() -> FakeRun:
    fake = FakeRun()
    fake.advance(300)
    return fake


@pytest.fixture
def security() -> Security:
    return Security(token=TOKEN, read_token=READ_TOKEN)


@pytest.fixture
def errors() -> list[BaseException]:
    return []


@pytest.fixture
def app(run: FakeRun, security: Security, errors: list[BaseException]) -> Flask:
    return create_app(run, security, on_error=errors.append)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def server(app: Flask, errors: list[BaseException]) -> Iterator[HttpServer]:
    with HttpServer(app, port=0, on_error=errors.append) as http_server:
        yield http_server
    assert errors == []
