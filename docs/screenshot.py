"""Make docs/live-page.png: train the example char_gpt, halve its learning rate on the way, and photograph its page.

    python docs/screenshot.py              # two minutes on two idle cores
    python docs/screenshot.py --width 390 --color-scheme dark --out phone.png

Needs the extras ``page`` and ``test``, and a Chromium (``$CHROMIUM``, or one on the path).
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

HERE = Path(__file__).resolve().parent
REDUCE_AT, PHOTOGRAPH_AT = 0.55, 0.8  # shares of the run


def main() -> None:
    """Train, reduce, photograph."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "live-page.png")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--width", type=int, default=1440)
    parser.add_argument("--height", type=int, default=1130)
    parser.add_argument("--color-scheme", choices=("light", "dark"), default="light")
    arguments = parser.parse_args()
    token, port = secrets.token_urlsafe(16), free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        training = start_training(arguments.steps, {"TOKEN": token, "PORT": str(port), "DIR": folder})
        try:
            wait_for_step(training, url, token, int(arguments.steps * REDUCE_AT))
            call(url, token, "/lr/reduce", {"factor": 0.5, "reason": "smoother end"})
            wait_for_step(training, url, token, int(arguments.steps * PHOTOGRAPH_AT))
            photograph(f"{url}/?token={token}", arguments)
        finally:
            training.terminate()
            training.wait()
    print(arguments.out)


def free_port() -> int:
    """Return a port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_training(steps: int, settings: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start the example with the monitor's settings in its environment."""
    environment = {**os.environ, **{f"MONITOR_{name}": value for name, value in settings.items()}}
    example = HERE.parent / "examples" / "char_gpt.py"
    return subprocess.Popen([sys.executable, str(example), "--steps", str(steps)], env=environment)


def wait_for_step(training: subprocess.Popen[bytes], url: str, token: str, step: int) -> None:
    """Wait until the run has made ``step`` steps."""
    while training.poll() is None:
        try:
            optimizers = call(url, token, "/run")["optimizers"]
        except OSError:
            optimizers = []  # not up yet
        if optimizers and optimizers[0]["global_step"] >= step:
            return
        time.sleep(0.5)
    raise SystemExit(f"the training ended before step {step}, with status {training.returncode}")


def call(url: str, token: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """Ask the run's API; with a body, POST it."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(f"{url}/api/v1{path}", data, headers), timeout=10) as answer:
        return json.load(answer)


def photograph(address: str, arguments: argparse.Namespace) -> None:
    """Open the page as a person would, and keep what the screen shows."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        viewport = {"width": arguments.width, "height": arguments.height}
        page = browser.new_page(viewport=viewport, color_scheme=arguments.color_scheme)  # type: ignore[arg-type]
        page.goto(address)
        page.wait_for_selector("#chart-loss .js-plotly-plot .main-svg")
        page.wait_for_timeout(2500)
        page.screenshot(path=str(arguments.out))
        browser.close()


if __name__ == "__main__":
    main()
