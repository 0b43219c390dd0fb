"""The page's files: served from their folder, and from nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest
from flask.testing import FlaskClient

from monitor.server import Security, _page, create_app
from tests.requirements import need_module
from tests.server.fake_run import TOKEN, FakeRun
from tests.server.wire import READ


@pytest.fixture
def page(tmp_path: Path, run: FakeRun) -> FlaskClient:
    """An application whose page folder lies beside a file that nobody may see."""
    folder = tmp_path / "page"
    (folder / "parts").mkdir(parents=True)
    (folder / "index.html").write_text("<!doctype html><title>page</title>")
    (folder / "page.js").write_text("export {};")
    (folder / "page.css").write_text("p {}")
    (folder / "icon.svg").write_text("<svg/>")
    (folder / ".hidden").write_text("secret")
    (tmp_path / "token").write_text("secret")
    (tmp_path / "page-two").mkdir()
    (tmp_path / "page-two" / "x.js").write_text("secret")
    return create_app(run, Security(token=TOKEN, read_token=READ["Authorization"][7:]), page_dir=folder).test_client()


@pytest.mark.parametrize(
    ("path", "mimetype"),
    [
        ("/", "text/html"),
        ("/static/page.js", "text/javascript"),
        ("/static/page.css", "text/css"),
        ("/static/icon.svg", "image/svg+xml"),
    ],
)
def test_the_page_is_served_with_types_that_a_browser_runs(page: FlaskClient, path: str, mimetype: str) -> None:
    """The machine's own table of types has no say; a file that changed is asked for again."""
    with page.get(path, headers=READ) as response:
        assert response.status_code == 200
        assert response.mimetype == mimetype
        assert response.headers["Cache-Control"] == "no-cache"
        etag = response.headers["ETag"]
    with page.get(path, headers={**READ, "If-None-Match": etag}) as again:
        assert again.status_code == 304


@pytest.mark.parametrize("path", ["/static/page.js", "/static/plotly.min.js", "/static/none"])
def test_the_files_need_a_token_too(page: FlaskClient, path: str) -> None:
    """Nothing but the login is for strangers."""
    assert page.get(path).status_code == 401


@pytest.mark.parametrize(
    "name",
    [
        "none.js",
        "",
        "parts",
        "parts/",
        ".hidden",
        "../token",
        "..%2ftoken",
        "%2e%2e/token",
        "parts/../../token",
        "../page-two/x.js",
        "/etc/passwd",
        "//etc/passwd",
        "%2fetc%2fpasswd",
        "..\\token",
        "..%5ctoken",
        "page.js%00.css",
        "%c0%ae%c0%ae/token",
        "x" * 5000,
        "index.html/x",
    ],
)
def test_no_path_leads_out_of_the_folder(page: FlaskClient, name: str) -> None:
    """Whatever is asked for, it is a file of the page or a 404."""
    with page.get(f"/static/{name}", headers=READ) as response:
        assert response.status_code == 404
        assert b"secret" not in response.data
        assert response.content_type == "application/problem+json"


def test_the_script_of_the_charts_comes_from_the_installed_package(client: FlaskClient) -> None:
    """plotly's own file, whole, cached by the browser for a day."""
    need_module("plotly")
    with client.get("/static/plotly.min.js", headers=READ) as response:
        assert response.status_code == 200
        assert response.mimetype == "text/javascript"
        assert response.headers["Cache-Control"] == "max-age=86400, private"
        assert len(response.data) == _page.plotly_script().stat().st_size > 1_000_000


def test_without_plotly_the_script_is_not_found(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """404 with the cure; the page then shows tables."""
    monkeypatch.setattr(_page, "find_spec", lambda name: None)
    response = client.get("/static/plotly.min.js", headers=READ)
    assert response.status_code == 404
    assert "pip install plotly" in response.json["detail"]


def test_a_missing_page_is_a_problem(run: FakeRun, tmp_path: Path) -> None:
    """Not a 500."""
    client = create_app(run, Security(token=TOKEN), page_dir=tmp_path).test_client()
    assert client.get("/", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 404
