"""A real Chromium for the page's tests, and a look at everything it complains about or asks other hosts for."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest

from monitor.server import HttpServer, Security, create_app
from tests.browser.page_run import PageRun
from tests.requirements import need, need_module
from tests.server.fake_run import READ_TOKEN, TOKEN

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@pytest.fixture(scope="package")
def chromium():
    """One browser for all of these tests; each test gets a profile of its own."""
    need_module("playwright")
    path = os.environ.get("CHROMIUM") or need("chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@dataclass
class Visit:
    """A page that looks at a run. ``complaints`` is what the browser's console or the page's code had to say."""

    run: PageRun
    server: HttpServer
    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    expected: tuple[str, ...] = ()

    def until(self, script: str, wanted: object) -> None:
        """Wait until ``script`` gives what is wanted. (Playwright's wait uses eval: the policy forbids it.)"""
        found: object = None
        for _ in range(1200):
            found = self.page.evaluate(script)
            if found == wanted:
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"{script} gives {found!r}, not {wanted!r}")

    def foreign(self) -> list[str]:
        """Return the requests that went to another host."""
        own = urlsplit(self.server.url).netloc
        return [
            url for url in self.requests if urlsplit(url).scheme in ("http", "https") and urlsplit(url).netloc != own
        ]


@pytest.fixture
def visit(chromium) -> Iterator[Callable[..., Visit]]:
    """Open the page on a run: ``visit(run, token=..., width=..., clock=True, expected=("404",))``. ``server``: one
    that is there already, with a ``url``; it is stopped at the end.

    Afterwards the console must be empty but for what is ``expected``, and no other host have been asked.
    """
    visits: list[Visit] = []
    contexts = []

    def open_page(
        run: PageRun | None = None,
        *,
        token: str = TOKEN,
        width: int = 1280,
        height: int = 900,
        color_scheme: str = "light",
        has_plotly: bool = True,
        clock: bool = False,
        expected: tuple[str, ...] = (),
        port: int = 0,
        server: Any = None,
    ) -> Visit:
        run = run or PageRun()
        server = server or serve(run, port)
        context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=color_scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        seen = Visit(run, server, page, expected=expected)
        visits.append(seen)
        page.on(
            "console",
            lambda message: seen.complaints.append(message.text) if message.type in ("error", "warning") else None,
        )
        page.on("pageerror", lambda error: seen.complaints.append(str(error)))
        page.on("request", lambda request: seen.requests.append(request.url))
        if not has_plotly:
            page.route("**/plotly.min.js", lambda route: route.fulfill(status=404, body=""))
        if clock:
            page.clock.install()
        page.goto(f"{server.url}/?token={token}")
        return seen

    yield open_page
    for context in contexts:
        context.close()
    for seen in visits:
        seen.server.stop()
    assert [name for name in (thread.name for thread in threading.enumerate()) if name.startswith("monitor-http")] == []
    for seen in visits:
        assert [text for text in seen.complaints if not any(part in text for part in seen.expected)] == []
        assert seen.foreign() == []


def serve(run: PageRun, port: int = 0) -> HttpServer:
    """Serve a run; the caller stops it."""
    return HttpServer(create_app(run, Security(token=TOKEN, read_token=READ_TOKEN)), port=port).start()
