"""Authentication: tokens, the page's session, CSRF, allowed hosts, the rate limit on failed logins."""

from __future__ import annotations

import re
from urllib.parse import urljoin

import pytest
from flask import Flask
from flask.testing import FlaskClient

from monitor.server import Security, create_app
from monitor.server._auth import Auth
from monitor.server._problems import HttpProblem
from monitor.server._security import Hosts, LoginRateLimit, Permission, Sessions
from monitor.server.wsgi import is_loopback
from tests.server.fake_run import READ_TOKEN, TOKEN, FakeRun
from tests.server.wire import CONTROL, JSON, READ

API = "/api/v1"
REMOTE = {"REMOTE_ADDR": "198.51.100.9"}
READING = ["/run", "/history", "/events", "/lr", "/commands/c1", "/targets", "/openapi.json"]
CHANGING = [
    ("PUT", "/lr"),
    ("POST", "/lr/reduce"),
    ("POST", "/lr/restore"),
    ("POST", "/lr/undo"),
    ("POST", "/pause"),
    ("POST", "/resume"),
    ("POST", "/stop"),
    ("POST", "/checkpoint"),
]


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


# tokens


@pytest.mark.parametrize("path", READING)
def test_reading_needs_a_token(client: FlaskClient, path: str) -> None:
    """Without one: 401, and how to send it. Either token will do."""
    refused = client.get(API + path)
    assert refused.status_code == 401
    assert refused.headers["WWW-Authenticate"] == 'Bearer realm="monitor"'
    assert "Authorization: Bearer" in refused.json["detail"]
    for headers in (READ, CONTROL):
        assert client.get(API + path, headers=headers).status_code in (200, 404)


@pytest.mark.parametrize(("method", "path"), CHANGING)
def test_changing_needs_the_control_token(client: FlaskClient, run: FakeRun, method: str, path: str) -> None:
    """No token: 401; the read-only one: 403; in both cases before the body is looked at, and nothing changed."""
    assert client.open(API + path, method=method, data=b"{").status_code == 401
    refused = client.open(API + path, method=method, data=b"{", headers=READ)
    assert refused.status_code == 403
    assert "read-only" in refused.json["detail"]
    assert not run.commands()


@pytest.mark.parametrize(
    "header",
    [
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN.upper()}",
        "Bearer",
        "Bearer ",
        "Bearer null",
        f"Basic {TOKEN}",
        TOKEN,
        f"Bearer {TOKEN},{TOKEN}",
        "Bearer \xe9\xff",
        "Bearer " + "x" * 20000,
    ],
)
def test_a_wrong_credential_is_refused(client: FlaskClient, run: FakeRun, header: str) -> None:
    """Whatever stands in the header, it is a 401 and never a 500."""
    response = client.post(f"{API}/pause", headers={"Authorization": header})
    assert response.status_code == 401
    assert TOKEN not in response.text
    assert not run.commands()


def test_the_scheme_is_read_as_http_says(client: FlaskClient) -> None:
    """The word Bearer may be written in any case."""
    assert client.get(f"{API}/run", headers={"Authorization": f"bearer  {TOKEN}"}).status_code == 200


def test_a_token_in_the_query_opens_the_page_alone(client: FlaskClient) -> None:
    """URLs end up in logs: the API takes no token from one."""
    assert client.get(f"{API}/run?token={TOKEN}").status_code == 401
    assert client.get(f"/metrics?token={TOKEN}", environ_base=REMOTE).status_code == 401


@pytest.mark.parametrize("name", ["token", "read_token"])
@pytest.mark.parametrize("value", ["", "two words", "tok\nen", "schlüssel"])
def test_security_refuses_tokens_that_no_header_can_carry(name: str, value: str) -> None:
    """Reported on construction, not by requests that fail later."""
    with pytest.raises(ValueError, match=f"^{name} must be printable ASCII"):
        Security(**{"token": TOKEN, name: value})


def test_security_refuses_two_equal_tokens() -> None:
    """A read-only token that equals the other would allow control."""
    with pytest.raises(ValueError, match="must differ"):
        Security(token=TOKEN, read_token=TOKEN)


def test_every_view_has_its_need_and_an_unknown_one_needs_control(app: Flask) -> None:
    """A view that somebody adds without a thought is closed, not open."""
    app.add_url_rule("/forgotten", "forgotten", lambda: "open", methods=["GET"])
    client = app.test_client()
    assert client.get("/forgotten").status_code == 401
    assert client.get("/forgotten", headers=READ).status_code == 403
    open_paths = {
        rule.rule
        for rule in app.url_map.iter_rules()
        if "GET" in rule.methods and client.get(rule.rule).status_code == 200
    }
    assert open_paths == {"/metrics", "/healthz"}


# metrics


@pytest.mark.parametrize("path", ["/metrics", "/healthz"])
@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1", "127.8.9.10"])
def test_metrics_are_open_on_this_machine(client: FlaskClient, path: str, address: str) -> None:
    """A Prometheus on the same machine needs no set-up."""
    assert client.get(path, environ_base={"REMOTE_ADDR": address}).status_code == 200


@pytest.mark.parametrize("path", ["/metrics", "/healthz"])
def test_metrics_ask_others_for_a_token(client: FlaskClient, run: FakeRun, path: str) -> None:
    """From another machine the read token is needed, as the curves are nobody else's business."""
    assert client.get(path, environ_base=REMOTE).status_code == 401
    assert client.get(path, environ_base=REMOTE, headers=READ).status_code == 200


@pytest.mark.parametrize("path", ["/metrics", "/healthz"])
def test_protected_metrics_ask_everybody(run: FakeRun, path: str) -> None:
    """protect_metrics closes them on this machine too; a refused scrape is none."""
    client = create_app(run, Security(token=TOKEN, read_token=READ_TOKEN, protect_metrics=True)).test_client()
    client.get(path).close()
    assert run.num_scrapes == 0
    assert client.get(path).status_code == 401
    assert client.get(path, headers=READ).status_code == 200


# the page's session


def open_page(client: FlaskClient, token: str = TOKEN) -> str:
    """Log in as the URL from the log does, and return the CSRF token."""
    response = client.get(f"/?token={token}")
    assert response.status_code == 303
    return response.headers["Location"].partition("#csrf=")[2]


def test_the_url_of_the_log_becomes_a_session(client: FlaskClient) -> None:
    """The token leaves the address bar; the cookie is out of reach of scripts and other sites."""
    response = client.get(f"/?token={TOKEN}")
    assert response.status_code == 303
    assert re.fullmatch(r"\./#csrf=[\w-]{43}", response.headers["Location"])
    cookie = response.headers["Set-Cookie"]
    assert re.match(r"monitor_session_80=[\w-]+\.[\w-]{43}; ", cookie)
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
    assert "Secure" not in cookie
    assert TOKEN not in cookie
    assert client.get(f"{API}/run").status_code == 200


def test_a_link_on_another_site_still_opens_the_page(client: FlaskClient) -> None:
    """Browsers withhold a Strict cookie along a cross-site redirect, so there the page refreshes itself."""
    response = client.get(f"/?token={TOKEN}", headers={"Sec-Fetch-Site": "cross-site"})
    assert response.status_code == 200
    assert re.search(r'http-equiv="refresh" content="0; url=\./#csrf=[\w-]{43}"', response.text)
    assert TOKEN not in response.text
    assert "Set-Cookie" in response.headers


@pytest.mark.parametrize("prefix", ["", "/user/ada/proxy/9477"])
@pytest.mark.parametrize("token", [TOKEN, READ_TOKEN])
def test_the_way_in_stays_below_the_path_of_a_proxy(client: FlaskClient, prefix: str, token: str) -> None:
    """A proxy that takes a path prefix off: every address that the login gives leads back below that prefix."""
    page = f"https://hub.example.org{prefix}/"
    form = client.get("/", headers={"Accept": "text/html"}).text
    actions = re.findall('action="([^"]*)"', form) + re.findall('action="([^"]*)"', refused_form(client))
    assert [urljoin(page, action) for action in actions] == [f"{page}login"] * 2
    redirects = [
        (page, client.get(f"/?token={token}").headers["Location"]),
        (f"{page}login", client.post("/login", data={"token": token}).headers["Location"]),
        (page, refresh_of(client, token)),
    ]
    assert [urljoin(base, to).partition("#")[0] for base, to in redirects] == [page] * 3


def refused_form(client: FlaskClient) -> str:
    return client.post("/login", data={"token": "wrong"}, headers={"Accept": "text/html"}).text


def refresh_of(client: FlaskClient, token: str) -> str:
    text = client.get(f"/?token={token}", headers={"Sec-Fetch-Site": "cross-site"}).text
    return text.partition("url=")[2].partition('"')[0]


@pytest.mark.parametrize(("base", "is_secure"), [("https://localhost", True), ("http://localhost", False)])
def test_the_cookie_is_secure_over_tls(client: FlaskClient, base: str, is_secure: bool) -> None:
    """Over https the cookie never travels in clear; behind a proxy a setting says so."""
    assert ("Secure" in client.get(f"/?token={TOKEN}", base_url=base).headers["Set-Cookie"]) is is_secure


def test_a_proxy_that_speaks_tls_can_have_secure_cookies(run: FakeRun) -> None:
    """cookie_secure marks the cookie though the request came in clear."""
    client = create_app(run, Security(token=TOKEN, cookie_secure=True)).test_client()
    assert "; Secure" in client.get(f"/?token={TOKEN}").headers["Set-Cookie"]


def test_two_runs_on_one_machine_do_not_share_a_cookie(client: FlaskClient) -> None:
    """Cookies ignore ports, so the name holds it."""
    response = client.get(f"/?token={TOKEN}", environ_base={"SERVER_PORT": "9478"}, base_url="http://localhost:9478")
    assert response.headers["Set-Cookie"].startswith("monitor_session_9478=")


def test_a_browser_without_a_session_gets_a_form(client: FlaskClient) -> None:
    """A person sees where to put the token; a program gets a problem."""
    page = client.get("/", headers={"Accept": "text/html,*/*;q=0.8"})
    assert page.status_code == 401
    assert '<form method="post" action="login">' in page.text
    assert "<script" not in page.text
    assert client.get("/", headers={"Accept": "application/json"}).content_type == "application/problem+json"


def test_the_form_opens_a_session_without_a_script(client: FlaskClient) -> None:
    """POST /login with the right token leads to the page."""
    response = client.post("/login", data={"token": f" {TOKEN} "})
    assert (response.status_code, response.headers["Location"].partition("=")[0]) == (303, "./#csrf")
    assert client.get(f"{API}/run").status_code == 200


@pytest.mark.parametrize("token", ["wrong", "", "<script>alert(1)</script>"])
def test_the_form_refuses_a_wrong_token(client: FlaskClient, token: str) -> None:
    """The form comes back with the reason and without what was typed; no cookie is set."""
    response = client.post("/login", data={"token": token}, headers={"Accept": "text/html"})
    assert response.status_code == 401
    assert 'role="alert"' in response.text
    assert "alert(1)" not in response.text
    assert "Set-Cookie" not in response.headers


def test_the_form_takes_forms_only(client: FlaskClient) -> None:
    """Anything else is 415."""
    assert client.post("/login", json={"token": TOKEN}).status_code == 415


def test_a_wrong_token_in_the_url_sets_no_cookie(client: FlaskClient) -> None:
    """401 with the form."""
    response = client.get("/?token=wrong", headers={"Accept": "text/html"})
    assert response.status_code == 401
    assert "Set-Cookie" not in response.headers


def test_a_change_by_cookie_needs_the_csrf_header(client: FlaskClient, run: FakeRun) -> None:
    """A cookie alone comes along with requests that another page forged; the header does not."""
    csrf = open_page(client)
    for headers in ({}, {"X-CSRF-Token": ""}, {"X-CSRF-Token": "0" * 43}, {"X-CSRF-Token": "\xe9"}):
        refused = client.post(f"{API}/pause", headers=headers)
        assert refused.status_code == 403
        assert "X-CSRF-Token" in refused.json["detail"]
    assert not run.commands()
    accepted = client.post(f"{API}/pause", headers={"X-CSRF-Token": csrf})
    assert accepted.status_code == 202
    assert accepted.json["actor"] == "page@127.0.0.1"


def test_a_cookie_that_others_see_changes_nothing(app: Flask, client: FlaskClient, run: FakeRun) -> None:
    """Browsers send a cookie to every port of a host: whoever serves another one there may look with it, but no answer
    to it holds what a change needs."""
    csrf = open_page(client)
    cookie = client.get_cookie("monitor_session_80")
    thief = app.test_client()
    thief.set_cookie("monitor_session_80", cookie.value)
    paths = ("/", f"{API}/run", f"{API}/lr", f"{API}/events", f"{API}/openapi.json", "/static/page.js")
    answers = [thief.get(path, buffered=True) for path in paths]
    assert [answer.status_code for answer in answers] == [200] * 6
    for answer in answers:
        assert csrf not in answer.text + str(answer.headers)
    assert thief.post(f"{API}/pause").status_code == 403
    assert not run.commands()


def test_the_csrf_token_of_one_session_is_none_for_another(app: Flask) -> None:
    """It is bound to the session, not to the run."""
    first, second = app.test_client(), app.test_client()
    stolen = open_page(first)
    open_page(second)
    assert second.post(f"{API}/pause", headers={"X-CSRF-Token": stolen}).status_code == 403


def test_a_bearer_needs_no_csrf_header(client: FlaskClient) -> None:
    """A header that a browser never adds by itself is proof enough, a cookie beside it or not."""
    open_page(client)
    assert client.post(f"{API}/pause", headers=CONTROL).status_code == 202


def test_a_read_only_session_may_look_alone(client: FlaskClient, run: FakeRun) -> None:
    """The page of the read token knows that it cannot control."""
    assert client.get(f"/?token={READ_TOKEN}").headers["Location"] == "./"
    assert client.get(f"{API}/run").json["page"] == {"can_control": False}
    assert client.post(f"{API}/pause", headers={"X-CSRF-Token": ""}).status_code == 403
    assert not run.commands()


def test_get_never_changes_anything(client: FlaskClient, run: FakeRun) -> None:
    """Not by path, not by method override."""
    open_page(client)
    for path in ("/lr/reduce?factor=0.5", "/pause", "/stop", "/checkpoint"):
        assert client.get(API + path, headers=CONTROL).status_code == 405
        assert client.head(API + path, headers=CONTROL).status_code == 405
    client.get(f"{API}/lr", headers={**CONTROL, "X-HTTP-Method-Override": "PUT"}, data='{"factor": 0.5}')
    assert not run.commands()


def test_a_session_ends_with_its_token() -> None:
    """A cookie of an earlier run on this port opens nothing, nor does one that was tampered with."""
    cookie = Sessions(Security(token="the-old-token")).open("the-old-token")
    sessions = Sessions(Security(token=TOKEN, read_token=READ_TOKEN))
    assert sessions.permission_of_cookie(cookie) == Permission("none")
    reading = sessions.open(READ_TOKEN)
    name, _, signature = reading.partition(".")
    assert sessions.permission_of_cookie(reading) == Permission("read", name)
    for forged in ("", ".", name, f"{name}.", f"{name}x.{signature}", f"{name}.{signature[:-1]}", f"{name}.\udcff"):
        assert sessions.permission_of_cookie(forged) == Permission("none")


def test_a_signature_serves_one_purpose() -> None:
    """The CSRF token of a session does not open it, nor does the cookie's signature pass as the CSRF token."""
    sessions = Sessions(Security(token=TOKEN, read_token=READ_TOKEN))
    cookie = sessions.open(TOKEN)
    session, _, signature = cookie.partition(".")
    permission = sessions.permission_of_cookie(cookie)
    assert sessions.is_csrf_right(permission, sessions.csrf_of(permission))
    assert sessions.permission_of_cookie(f"{session}.{sessions.csrf_of(permission)}") == Permission("none")
    assert not sessions.is_csrf_right(permission, signature)


@pytest.mark.parametrize("change", [{"token": "the-new-token"}, {"read_token": "the-new-reading"}])
def test_a_changed_token_ends_its_own_sessions_alone(change: dict[str, str]) -> None:
    """The session of the other token stays open."""
    known = {"token": TOKEN, "read_token": READ_TOKEN}
    before, after = Sessions(Security(**known)), Sessions(Security(**{**known, **change}))
    levels = {name: after.permission_of_cookie(before.open(token)).level for name, token in known.items()}
    assert levels == {"token": "control", "read_token": "read"} | dict.fromkeys(change, "none")


# guessing


def guess(client: FlaskClient, times: int, address: str = "127.0.0.1", **headers: str) -> list[int]:
    """Send wrong tokens from an address and return how each was answered."""
    base = {"REMOTE_ADDR": address}
    asked = [{**bearer(f"guess-{index}"), **headers} for index in range(times)]
    return [client.get(f"{API}/run", headers=one, environ_base=base).status_code for one in asked]


def test_ten_wrong_tokens_a_minute_are_enough(client: FlaskClient) -> None:
    """From the eleventh on wrong tokens are 429 with Retry-After, wherever they are offered."""
    assert guess(client, 12) == [401] * 10 + [429] * 2
    for blocked in (
        client.get(f"{API}/run", headers=bearer("guess")),
        client.post("/login", data={"token": "guess"}),
        client.get("/?token=guess"),
    ):
        assert blocked.status_code == 429
        assert 0 < int(blocked.headers["Retry-After"]) <= 60
    assert client.get(f"{API}/run", headers=bearer("guess"), environ_base=REMOTE).status_code == 401


def test_the_right_token_is_never_rate_limited(client: FlaskClient, run: FakeRun) -> None:
    """Who shares the owner's address, and guesses, cannot lock the owner out: not the CLI, the page or Prometheus."""
    guess(client, 12)
    assert client.get(f"{API}/run", headers=READ).status_code == 200
    assert client.post(f"{API}/pause", headers=CONTROL).status_code == 202
    assert client.get(f"/?token={TOKEN}").status_code == 303
    assert client.post("/login", data={"token": TOKEN}).status_code == 303
    assert guess(client, 1) == [429]


def test_a_right_token_does_not_wipe_out_the_wrong_ones(client: FlaskClient) -> None:
    """Nor does it count: the owner's polls neither help a guesser nor use up the rate limit."""
    assert guess(client, 9) == [401] * 9
    for _ in range(20):
        assert client.get(f"{API}/run", headers=READ).status_code == 200
    assert guess(client, 2) == [401, 429]


def test_all_addresses_of_loopback_are_one_guesser(client: FlaskClient) -> None:
    """A local process has sixteen million addresses, and IPv6 besides; they share ten tries."""
    addresses = ["127.0.0.1", "127.0.0.2", "127.200.3.4", "::1", "::ffff:127.0.0.9", "127.0.0.3"]
    assert [guess(client, 2, address) for address in addresses] == [[401, 401]] * 5 + [[429, 429]]


@pytest.mark.parametrize("path", ["/?token=x", f"{API}/run"])
def test_another_sites_pictures_are_no_guesses(client: FlaskClient, path: str) -> None:
    """A page elsewhere that embeds this address gets a 403 and counts for nothing: it speaks through the owner's
    browser, from the owner's address."""
    foreign = {**bearer("x"), "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "image"}
    for _ in range(30):
        refused = client.get(path, headers=foreign)
        assert refused.status_code == 403
        assert "another site" in refused.json["detail"]
        assert "Set-Cookie" not in refused.headers
    assert guess(client, 11) == [401] * 10 + [429]
    assert client.get(path, headers=foreign).status_code == 403


def test_a_stale_link_on_another_site_shows_the_form(client: FlaskClient) -> None:
    """A person who follows a link with the token of an earlier run sees why, and where to put the right one."""
    page = client.get("/?token=stale", headers={"Sec-Fetch-Site": "cross-site", "Accept": "text/html"})
    assert page.status_code == 403
    assert '<form method="post" action="login">' in page.text


def test_guessing_does_not_lock_out_a_page_that_is_open(client: FlaskClient) -> None:
    """A session is no guess: another user of this machine cannot lock its owner out."""
    csrf = open_page(client)
    for index in range(12):
        client.get(f"{API}/run", headers=bearer(f"guess-{index}"))
    assert client.get(f"{API}/run").status_code == 200
    assert client.post(f"{API}/pause", headers={"X-CSRF-Token": csrf}).status_code == 202
    assert client.get("/metrics").status_code == 200


def test_a_page_left_open_is_no_guess(client: FlaskClient) -> None:
    """A page that polls with the cookie of an earlier run, or with none, does not block its owner."""
    client.set_cookie("monitor_session_80", "old.signature")
    for _ in range(20):
        assert client.get(f"{API}/run").status_code == 401
    assert client.get(f"{API}/run", headers=CONTROL).status_code == 200


def test_the_rate_limit_ends_with_its_window() -> None:
    """The window slides: as the oldest failure leaves it, one more try is free."""
    now = [0.0]
    limit = LoginRateLimit(limit=3, window=60.0, clock=lambda: now[0])
    for second in (0.0, 10.0, 20.0):
        now[0] = second
        assert limit.retry_after("192.0.2.1") is None
        limit.add("192.0.2.1")
    assert limit.retry_after("192.0.2.1") == 40
    now[0] = 60.0
    assert limit.retry_after("192.0.2.1") is None
    limit.add("192.0.2.1")
    assert limit.retry_after("192.0.2.1") == 10


def test_the_table_of_failures_is_bounded() -> None:
    """A million addresses cost no more memory than a thousand; the latest are known."""
    limit = LoginRateLimit(limit=1, capacity=3, clock=lambda: 0.0)
    for index in range(10):
        limit.add(f"192.0.2.{index}")
    assert [limit.retry_after(f"192.0.2.{index}") for index in (0, 6, 7, 9)] == [None, None, 60, 60]


def test_an_owner_of_many_ipv6_addresses_is_one_guesser() -> None:
    """A /64 counts as one; an IPv4 address in IPv6 clothes is that address."""
    limit = LoginRateLimit(limit=1, clock=lambda: 0.0)
    limit.add("2001:db8:0:1::1")
    limit.add("::ffff:192.0.2.7")
    assert limit.retry_after("2001:db8:0:1:ffff::2") == 60
    assert limit.retry_after("2001:db8:0:2::1") is None
    assert limit.retry_after("192.0.2.7") == 60


def test_auth_reads_the_clock_that_it_is_given(app: Flask, security: Security) -> None:
    """The rate limit is tested without waiting a minute."""
    now = [0.0]
    auth = Auth(security, clock=lambda: now[0])
    with app.test_request_context("/", environ_base={"REMOTE_ADDR": "192.0.2.1"}):
        for _ in range(10):
            with pytest.raises(HttpProblem, match="not the one of this run"):
                auth.permission_of_guess("wrong")
        with pytest.raises(HttpProblem, match=r"Too many wrong tokens from 192\.0\.2\.1; try again in 60 s"):
            auth.permission_of_guess("wrong")
        assert auth.permission_of_guess(TOKEN) == Permission("control")
        now[0] = 60.0
        with pytest.raises(HttpProblem, match="not the one of this run"):
            auth.permission_of_guess("wrong")


# hosts


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:9477", "LOCALHOST.", "127.0.0.1", "127.0.0.1:1", "[::1]", "[::1]:9477", "127.1.2.3"],
)
def test_this_machine_is_served_by_its_names(client: FlaskClient, host: str) -> None:
    """With any port, as tunnels and port mappings change it."""
    assert client.get("/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:9477",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "127.0.0.1@evil.example",
        "192.0.2.1",
        "0.0.0.0",
        "[2001:db8::1]",
        "host.docker.internal",
        "",
        "localhost:port",
        "localhost:999999",
        "localhost, evil.example",
        "a b",
        "[::1",
    ],
)
@pytest.mark.parametrize("path", ["/", "/metrics", "/healthz", "/api/v1/run", "/nothing"])
def test_a_foreign_host_is_refused_everywhere(client: FlaskClient, host: str, path: str) -> None:
    """A page whose name was rebound to this address gets nothing, with the right token neither."""
    response = client.get(path, headers=CONTROL, environ_overrides={"HTTP_HOST": host})
    assert response.status_code == 421
    assert response.content_type == "application/problem+json"
    assert repr(host) in response.json["detail"]


@pytest.mark.parametrize(
    ("security", "served", "refused"),
    [
        ({"bind_host": "0.0.0.0"}, ["192.0.2.1", "node7", "host.docker.internal", "[2001:db8::1]"], ["evil.example"]),
        ({"bind_host": "::"}, ["[2001:db8::1]:9477", "node7", "localhost"], ["evil.example"]),
        ({"bind_host": "192.0.2.5"}, ["192.0.2.5:9477", "node7"], ["192.0.2.6", "evil.example"]),
        ({"bind_host": "train.lan"}, ["train.lan", "TRAIN.LAN.:80"], ["other.lan"]),
        ({"hosts": ("Proxy.Example",)}, ["proxy.example:443"], ["example", "x.proxy.example", "node7"]),
    ],
)
def test_hosts_follow_the_bind_address(security: dict[str, str], served: list[str], refused: list[str]) -> None:
    """Bound to a wildcard any address of ours may be meant; a name must be known."""
    hosts = Hosts(Security(token=TOKEN, **security), hostname=lambda: "Node7")
    assert [host for host in served if not hosts.is_served(host)] == []
    assert [host for host in refused if hosts.is_served(host)] == []


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("::1", True),
        ("[::1]", True),
        ("127.9.9.9", True),
        ("0.0.0.0", False),
        ("::", False),
        ("example.org", False),
        ("", False),
    ],
)
def test_loopback_is_known(host: str, expected: bool) -> None:
    """The wildcard is not loopback: others reach it."""
    assert is_loopback(host) is expected


def test_options_promises_nothing(client: FlaskClient) -> None:
    """A preflight of another origin gets 405 and no CORS header."""
    response = client.options(f"{API}/lr/reduce", headers={**JSON, "Origin": "https://evil.example"})
    assert response.status_code == 405
    assert response.headers["Allow"] == "POST"
    assert "Access-Control-Allow-Origin" not in response.headers
