"""Make docs/settings.md and docs/metrics.md from the code: ``python docs/make_pages.py``; ``--check`` only compares."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from monitor._settings import Settings, variable_of
from monitor.export import render_docs

HEAD = """\
# Settings

<!-- Made by `python docs/make_pages.py` from monitor/_settings.py; a test compares the two. -->

Each is an argument of `monitor.attach`, by name, and an environment variable. The argument beats the variable, the
variable beats the default. A value that cannot be is refused by `attach`, with the value and the cure.

| setting | variable | default | meaning |
| --- | --- | --- | --- |
"""
TAIL = """
`MONITOR=1` in the environment of a Python has every training in it watched, without a line in the script, with the
settings of these variables. `monitor run` sets it, and takes the settings as options
([quickstart](quickstart.md#without-a-line-in-the-script)).

`MONITOR_DISABLED=1` makes `attach` return a run that does nothing, with the same methods.

`attach` also takes what cannot be a variable: `optimizer` and `scheduler`, each one or several; `detectors`, what to
look for; `on_event` and `on_checkpoint`, functions to call.
"""


def render_settings() -> str:
    """Return the page of the settings."""
    rows = []
    for field in dataclasses.fields(Settings):
        default = "" if field.default is None else f"`{field.default!r}`"
        variable = f"`{variable_of(field.name)}`"
        rows.append(f"| `{field.name}` | {variable} | {default} | {field.metadata['doc']} |\n")
    return HEAD + "".join(rows) + TAIL


PAGES = {"settings.md": render_settings, "metrics.md": render_docs}


def main() -> None:
    """Write the pages, or exit with the names of those that are not what the code makes of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a page is out of date")
    is_check = parser.parse_args().check
    folder = Path(__file__).parent
    stale = {name: text for name, make in PAGES.items() if (folder / name).read_text("utf-8") != (text := make())}
    if is_check and stale:
        sys.exit(f"out of date: {', '.join(stale)}; run: python docs/make_pages.py")
    for name, text in stale.items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
