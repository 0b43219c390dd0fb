"""Whatever is sent as a command, it is accepted or refused: never a 500, never a change without a 202."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from monitor.server import Security, create_app
from monitor.server import _json as strict
from tests.fuzz.effort import ANYTHING, tried
from tests.server.fake_run import TOKEN, FakeRun
from tests.server.wire import CONTROL, JSON

BODIES = ANYTHING | st.fixed_dictionaries(
    {"factor": st.floats() | ANYTHING},
    optional={
        "groups": st.lists(st.integers(-2, 3) | st.text(max_size=9)) | ANYTHING,
        "over_steps": ANYTHING,
        "reason": ANYTHING,
    },
)


def post(raw: bytes) -> tuple[FakeRun, Any]:
    run = FakeRun()
    errors: list[BaseException] = []
    client = create_app(run, Security(token=TOKEN), on_error=errors.append).test_client()
    response = client.post("/api/v1/lr/reduce", data=raw, headers={**CONTROL, **JSON})
    assert errors == []
    return run, response


def check(run: FakeRun, response: Any) -> None:
    assert response.status_code in (202, 400, 422)
    assert len(run.commands()) == (response.status_code == 202)
    if response.status_code != 202:
        assert response.content_type == "application/problem+json"
        assert response.json["detail"]


@tried(150)
@given(BODIES)
def test_any_json_is_accepted_or_refused(body: Any) -> None:
    """Objects of the right shape with wrong values, and values of any other shape."""
    check(*post(json.dumps(body).encode()))


@tried(150)
@given(st.binary(max_size=60))
def test_any_bytes_are_accepted_or_refused(body: bytes) -> None:
    """Bytes that are JSON by luck at most."""
    check(*post(body))


@tried(150)
@given(ANYTHING)
def test_what_is_encoded_is_json_and_nothing_is_lost(value: Any) -> None:
    """Every value comes back, with only those floats changed that JSON lacks."""

    def spelled(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: spelled(inner) for key, inner in item.items()}
        if isinstance(item, list):
            return [spelled(inner) for inner in item]
        return strict.plain(item)

    assert json.loads(strict.encode(value)) == spelled(value)
