"""What the server's tests share: a fake run, its application and a real server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

import monitor
from monitor.server import HttpServer, Security, create_app
from tests.control.conftest import noting
from tests.server.fake_run import READ_TOKEN, TOKEN, FakeRun
from tests.server.real_run import Live


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


@pytest.fixture
def attach(tmp_path: Path) -> Iterator[Callable[..., Live]]:
    """Return a function that attaches a real run to an optimizer of two param groups and serves it."""
    with ExitStack() as stack:

        def make(optimizer: Any = None, **settings: Any) -> Live:
            optimizer = optimizer or noting(0.1, 0.2, names=("body", "head"))
            quick = {"port": 0, "gpu": False, "directory": str(tmp_path), "linger": 0, **settings}
            run = monitor.attach(optimizer, token=TOKEN, read_token=READ_TOKEN, **quick)
            return Live(stack.enter_context(run), optimizer)

        yield make
