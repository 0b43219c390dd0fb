"""Render a dashboard of the Grafana at $GRAFANA_URL into a PNG, in a headless Chromium.

    GRAFANA_URL=http://127.0.0.1:3000 GRAFANA_TOKEN=glsa_... python dashboards/screenshot.py overview overview.png

The dashboard is one of overview, run, compare and hardware; variables are given as `--var run_id=digits-3f9a0c`. Needs
playwright and a Chromium ($CHROMIUM, or the one in PATH).
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from urllib.parse import urlencode

NAMES = ("overview", "run", "compare", "hardware")


def address(base: str, name: str, variables: list[str], span: str) -> str:
    """Return the URL of a dashboard without Grafana's own frame around it.

    >>> address("http://g:3000/", "run", ["run_id=a-1"], "1h")
    'http://g:3000/d/training-monitor-run?from=now-1h&to=now&var-run_id=a-1&kiosk='
    """
    given = [(f"var-{variable.partition('=')[0]}", variable.partition("=")[2]) for variable in variables]
    query = urlencode([("from", f"now-{span}"), ("to", "now"), *given, ("kiosk", "")])
    return f"{base.rstrip('/')}/d/training-monitor-{name}?{query}"


def render(url: str, path: str, token: str | None, chromium: str, width: int, height: int) -> list[str]:
    """Write the PNG once every panel has drawn; return what panels complain about."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        page = browser.new_page(viewport={"width": width, "height": height}, extra_http_headers=headers)
        page.goto(url, wait_until="networkidle", timeout=60_000)
        page.wait_for_selector("[data-testid^='data-testid Panel header']", timeout=60_000)
        page.wait_for_function("!document.querySelector(\"[aria-label='Panel loading bar']\")", timeout=60_000)
        found = page.locator("[data-testid='data-testid Panel status error']").all()
        complaints = [item.get_attribute("aria-label") or item.inner_text() for item in found]
        page.screenshot(path=path)
        browser.close()
    return complaints


def main() -> int:
    """Render what was asked for; exit 1 if a panel shows an error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dashboard", choices=NAMES)
    parser.add_argument("path", help="the PNG to write")
    parser.add_argument("--var", action="append", default=[], metavar="NAME=VALUE", help="value of a variable")
    parser.add_argument("--span", default="1h", help="time range up to now (default: %(default)s)")
    parser.add_argument("--size", default="1600x2400", help="width x height in pixels (default: %(default)s)")
    args = parser.parse_args()
    base = os.environ.get("GRAFANA_URL")
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not base or not chromium:
        parser.error("set GRAFANA_URL to a Grafana's address, and have a chromium in PATH or in $CHROMIUM")
    width, height = map(int, args.size.split("x"))
    url = address(base, args.dashboard, args.var, args.span)
    complaints = render(url, args.path, os.environ.get("GRAFANA_TOKEN"), chromium, width, height)
    for complaint in complaints:
        print(f"a panel shows an error: {complaint}", file=sys.stderr)
    print(args.path)
    return 1 if complaints else 0


if __name__ == "__main__":
    raise SystemExit(main())
