"""The OpenAPI document is held against the real server of a real run: every answer is one that it names."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest
import torch

import monitor
from tests.fuzz.effort import tried
from tests.requirements import need_module
from tests.server.fake_run import TOKEN
from tests.server.wire import OPENAPI

try:
    import requests
    import schemathesis
    from schemathesis import checks
except ImportError:
    schemathesis = None  # type: ignore[assignment]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a live run training whatever it is told; a pause is taken by resuming."""
    logging.getLogger("monitor").setLevel(logging.CRITICAL)
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([{"params": [weight], "name": "body"}], lr=0.1)
    has_begun, is_over = threading.Event(), threading.Event()

    def train() -> None:
        while not is_over.wait(0.002):
            weight.square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            has_begun.set()

    with monitor.attach(
        optimizer, port=0, token=TOKEN, gpu=False, linger=0, on_checkpoint=lambda: None,
        directory=str(tmp_path_factory.mktemp("run")),
    ) as run:  # fmt: skip
        thread = threading.Thread(target=train)
        thread.start()
        assert run.url is not None
        assert has_begun.wait(60)
        # The first factor brings a guard into the optimizer's class: before the tests look for what is left behind.
        run.set_lr_factor(0.5).wait(60)
        yield run.url
        is_over.set()
        requests.post(f"{run.url}/api/v1/resume", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60)
        thread.join(60)
        assert run.snapshot().errors == {}
    logging.getLogger("monitor").setLevel(logging.NOTSET)


if schemathesis is None:

    def test_every_answer_is_one_that_the_document_names() -> None:
        """Needs schemathesis."""
        need_module("schemathesis")

else:
    CHECKS = [
        checks.not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_headers_conformance,
        checks.response_schema_conformance,
        checks.allow_header_conformance,
    ]
    DOCUMENT = schemathesis.openapi.from_dict(OPENAPI)

    @DOCUMENT.parametrize()
    @tried(25)
    def test_every_answer_is_one_that_the_document_names(case: schemathesis.Case, address: str) -> None:
        """Right and wrong requests of every operation: no 5xx, no status, type, header or body that is not written
        down."""
        case.validate_response(sent(case, address), checks=CHECKS)

    def sent(case: schemathesis.Case, address: str) -> requests.Response:
        """Send a case as it is. schemathesis' own way of sending needs another urllib3 than grafana-client brings."""
        arguments = case.as_transport_kwargs(address, headers={"Authorization": f"Bearer {TOKEN}"})
        with requests.Session() as session:
            return session.request(**{"allow_redirects": False, "timeout": 20, **arguments})
