"""The live page's way in: its files, the charts' script and the login without a script."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from importlib.util import find_spec
from pathlib import Path
from string import Template

from flask import Flask, Response, request, send_file, send_from_directory

from monitor.server._auth import Auth, see_other, unauthorized
from monitor.server._problems import HttpProblem

PAGE_DIR = Path(__file__).parent / "page"
# Not left to the machine's own table: a browser runs no module that comes as another type.
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_LOGIN_TYPE = "application/x-www-form-urlencoded"


def add_page(app: Flask, auth: Auth, page_dir: Path = PAGE_DIR) -> None:
    """Add ``/``, ``/login`` and ``/static/`` to ``app``."""

    def index() -> Response:
        is_visit = request.method == "GET" and "prefetch" not in request.headers.get("Sec-Purpose", "")
        if "code" in request.args and is_visit:  # nothing else uses one up
            return _enter(auth.login_by_code, request.args["code"])
        if "token" in request.args:
            return _enter(auth.login, request.args["token"])
        if auth.permission().covers("read"):
            return _file(page_dir, "index.html")
        return _ask(401, "")

    def login() -> Response:
        if request.mimetype != _LOGIN_TYPE:
            raise HttpProblem(415, f"The login form sends {_LOGIN_TYPE}, not {request.mimetype or 'nothing'!r}.")
        try:
            return auth.login(request.form.get("token", "").strip(), see_other)
        except HttpProblem as problem:
            return _ask(problem.status, problem.detail, problem)

    def static(name: str) -> Response:
        return _file(page_dir, name)

    def plotly() -> Response:
        script = plotly_script()
        if script is None:
            detail = "plotly is not installed, so the page shows tables; pip install plotly."
            raise HttpProblem(404, detail)
        response = send_file(script, mimetype="text/javascript", conditional=True, max_age=86400)
        response.cache_control.private = True
        response.cache_control.public = False
        return response

    for rule, view, methods, need in (
        ("/", index, ["GET"], "none"),
        ("/login", login, ["POST"], "none"),
        ("/static/plotly.min.js", plotly, ["GET"], "read"),
        ("/static/<path:name>", static, ["GET"], "read"),
    ):
        app.add_url_rule(rule, view.__name__, view, methods=methods)
        auth.require(view.__name__, need)


def plotly_script() -> Path | None:
    """Return the script that the installed plotly package bundles, without importing it; None without one."""
    spec = find_spec("plotly")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        script = Path(folder) / "package_data" / "plotly.min.js"
        if script.is_file():
            return script
    return None


def _file(folder: Path, name: str) -> Response:
    if any(part.startswith(".") for part in name.split("/")) or "\0" in name:
        raise HttpProblem(404, "There is no such file.")
    response = send_from_directory(folder, name, conditional=True, mimetype=_TYPES.get(Path(name).suffix))
    response.headers["Cache-Control"] = "no-cache"
    return response


def _enter(login: Callable[[str, Callable[[str], Response]], Response], secret: str) -> Response:
    """Turn the URL from the log into a session, and the code or token out of the address bar."""
    try:
        if request.headers.get("Sec-Fetch-Site") == "cross-site":
            # A redirect that another site began does not carry a SameSite=Strict cookie; our own page's does.
            return login(secret, _refresh)
        return login(secret, see_other)
    except HttpProblem as problem:
        return _ask(problem.status, problem.detail, problem)


def _refresh(location: str) -> Response:
    return Response(_REFRESH.substitute(url=location), mimetype="text/html")


def _ask(status: int, complaint: str, problem: HttpProblem | None = None) -> Response:
    """Answer a browser with the login form and a program with a problem."""
    if "text/html" not in request.headers.get("Accept", ""):
        raise problem or unauthorized("This needs a token: send Authorization: Bearer TOKEN, or open /?token=...")
    note = f'<p role="alert">{escape(complaint)}</p>' if complaint else ""
    headers = problem.headers if problem else {"WWW-Authenticate": 'Bearer realm="monitor"'}
    return Response(_FORM.substitute(note=note), status, headers=headers, mimetype="text/html")


_REFRESH = Template('<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url=$url">')
_FORM = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><link rel="icon" href="data:,">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>monitor: log in</title><style>
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
form { max-width: 26rem; margin: 18vh auto 0; padding: 0 1rem } h1 { font-size: 1.25rem }
input, button { font: inherit; padding: .5rem .75rem; width: 100%; box-sizing: border-box; margin-top: .5rem }
</style></head><body><main><form method="post" action="login">
<h1>This training run is watched</h1>
<p>On the machine of the run, <code>monitor open</code> prints an address that logs in. The token is in the run's
folder, in the file <code>token</code>.</p>$note
<label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
<button>Open the page</button></form></main></body></html>
""")
