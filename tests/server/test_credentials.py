"""What a token for alerts, a login code, a proof and the socket of the folder are good for, and what not."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
from flask.testing import FlaskClient

from monitor.server import OWNER, LoginCodes, Security, create_app
from tests.server.fake_run import READ_TOKEN, TOKEN, FakeRun
from tests.server.test_alertmanager import alert, notification, outcomes, post
from tests.server.test_auth import API, CHANGING, READING, REMOTE, bearer, open_page
from tests.server.wire import CONTROL, JSON, READ

ALERT_TOKEN = "the-token-of-alertmanager"
ALERTS = bearer(ALERT_TOKEN)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def client(run: FakeRun, clock: Clock) -> FlaskClient:
    security = Security(token=TOKEN, read_token=READ_TOKEN, alert_token=ALERT_TOKEN)
    codes = LoginCodes(clock=clock)
    return create_app(run, security, codes=codes, prove=lambda nonce, port: f"proof of {nonce} at {port}").test_client()


# the token for alerts


def test_the_token_for_alerts_lowers_a_learning_rate(client: FlaskClient, run: FakeRun) -> None:
    """What the shipped rule asks for is done."""
    assert outcomes(post(client, notification(alert()), ALERTS)) == ["accepted"]
    assert [command.action for command in run.commands()] == ["reduce"]


@pytest.mark.parametrize("action", ["stop", "pause"])
def test_it_is_good_for_no_other_remediation(client: FlaskClient, run: FakeRun, action: str) -> None:
    """Who has got hold of it cannot end a run; the control token may still be sent for such a rule."""
    refused = post(client, notification(alert(labels={"remediation": action})), ALERTS)
    assert refused.status_code == 422
    assert "must be one of reduce with this token" in refused.json["detail"]
    assert not run.commands()
    assert outcomes(post(client, notification(alert(labels={"remediation": action})))) == ["accepted"]


def test_it_shows_nothing_changes_nothing_and_opens_no_page(client: FlaskClient, run: FakeRun) -> None:
    """Everything else is refused, as what it is."""
    paths = [("GET", path) for path in READING]
    for method, path in chain(paths, CHANGING, [("POST", "/login-codes")]):
        refused = client.open(API + path, method=method, headers=ALERTS)
        assert (refused.status_code, "hand in alerts and nothing else" in refused.json["detail"]) == (403, True)
    assert client.get("/metrics", headers=ALERTS, environ_base=REMOTE).status_code == 403
    assert client.get(f"/?token={ALERT_TOKEN}").status_code == 403
    assert client.post("/login", data={"token": ALERT_TOKEN}).status_code == 403
    assert not run.commands()


def test_reading_is_not_enough_for_alerts(client: FlaskClient, run: FakeRun) -> None:
    """The read-only token hands in none; a session with control needs its CSRF token."""
    assert post(client, notification(alert()), READ).status_code == 403
    csrf = open_page(client)
    assert post(client, notification(alert()), {}).status_code == 403
    assert not run.commands()
    assert outcomes(post(client, notification(alert()), {"X-CSRF-Token": csrf})) == ["accepted"]


def test_tokens_differ() -> None:
    """One that is given for two purposes would allow more than meant."""
    with pytest.raises(ValueError, match="token and alert_token must differ; each allows something else"):
        Security(token=TOKEN, alert_token=TOKEN)


# login codes


def code_of(client: FlaskClient, headers: dict[str, str] = CONTROL) -> str:
    answer = client.post(f"{API}/login-codes", headers=headers)
    assert (answer.status_code, answer.json["expires_in"]) == (200, 900)
    return str(answer.json["code"])


def test_a_code_opens_the_page_once(client: FlaskClient) -> None:
    """It becomes a session with control, and is none any more."""
    code = code_of(client)
    first = client.get(f"/?code={code}")
    assert (first.status_code, first.headers["Location"].startswith("./#csrf=")) == (303, True)
    assert client.get(f"{API}/run").status_code == 200
    again = client.get(f"/?code={code}", headers={"Accept": "text/html"})
    assert (again.status_code, "has been used or is too old" in again.text) == (401, True)


@pytest.mark.parametrize(("method", "headers"), [("HEAD", {}), ("GET", {"Sec-Purpose": "prefetch;prerender"})])
def test_only_a_visit_uses_a_code_up(client: FlaskClient, method: str, headers: dict[str, str]) -> None:
    """Not a look at the headers, and not a browser that loads ahead."""
    code = code_of(client)
    assert client.open(f"/?code={code}", method=method, headers=headers).status_code == 401
    assert client.get(f"/?code={code}").status_code == 303


def test_a_code_is_worth_nothing_after_its_minutes(client: FlaskClient, clock: Clock) -> None:
    """A log that somebody reads later gives nothing away."""
    code = code_of(client)
    clock.now = 901.0
    assert client.get(f"/?code={code}").status_code == 401


def test_codes_are_no_tokens_and_tokens_no_codes(client: FlaskClient) -> None:
    """Each is good where it belongs alone, and only who has control makes one."""
    code = code_of(client)
    assert client.get(f"{API}/run", headers=bearer(code)).status_code == 401
    assert client.get(f"/?token={code}").status_code == 401
    assert client.get(f"/?code={TOKEN}").status_code == 401
    assert client.get(f"{API}/run?code={code}").status_code == 401
    assert [client.post(f"{API}/login-codes", headers=one).status_code for one in ({}, READ)] == [401, 403]


def test_guessed_codes_are_limited_as_tokens_are(client: FlaskClient) -> None:
    """After ten the address waits; the right code still passes."""
    code = code_of(client)
    statuses = [client.get(f"/?code={number}").status_code for number in range(11)]
    assert statuses == [401] * 10 + [429]
    assert client.get(f"/?code={code}").status_code == 303


def test_codes_that_nobody_uses_do_not_pile_up() -> None:
    """The latest 64 count."""
    codes = LoginCodes()
    made = [codes.make() for _ in range(100)]
    assert [codes.take(code) for code in made] == [False] * 36 + [True] * 64


# the proof, and the socket


@pytest.mark.parametrize("nonce", ["", "00", "g" * 32, "A" * 32, "0" * 129])
def test_a_proof_is_for_a_nonce(client: FlaskClient, nonce: str) -> None:
    """It needs no token, and a nonce that is long enough."""
    good = "0f" * 16
    answer = client.get(f"{API}/proof?nonce={good}")
    assert answer.json == {"run_id": "fake-0a1b2c", "proof": f"proof of {good} at 80"}
    assert client.get(f"{API}/proof?nonce={nonce}").status_code == 422
    assert client.get(f"{API}/proof").status_code == 422


def test_a_server_without_a_key_proves_nothing(run: FakeRun) -> None:
    """That of a run that is over has no folder of its own."""
    client = create_app(run, Security(token=TOKEN)).test_client()
    assert client.get(f"{API}/proof?nonce={'0' * 32}").status_code == 404


@pytest.mark.parametrize("headers", [{}, bearer("wrong"), READ])
def test_who_comes_through_the_socket_is_the_owner(client: FlaskClient, run: FakeRun, headers: Any) -> None:
    """No token is asked for; the audit says which way it came. No header of a request says so by itself."""
    answer = client.post(f"{API}/pause", headers={**JSON, **headers}, environ_base={OWNER: True})
    assert (answer.status_code, answer.json["actor"]) == (202, "socket")
    forged = client.post(f"{API}/pause", headers={**JSON, "monitor.owner": "1", "Monitor-Owner": "1"})
    assert forged.status_code == 401
