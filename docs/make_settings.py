"""Make docs/settings.md from monitor/_settings.py: ``python docs/make_settings.py > docs/settings.md``."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from monitor._settings import Settings, variable_of

HEAD = """\
# Settings

<!-- Made by `python docs/make_settings.py` from monitor/_settings.py; a test compares the two. -->

Each is an argument of `monitor.attach`, by name, and an environment variable. The argument beats the variable, the
variable beats the default. A value that cannot be is refused by `attach`, with the value and the cure.

| setting | variable | default | meaning |
| --- | --- | --- | --- |
"""
TAIL = """
`MONITOR_DISABLED=1` makes `attach` return a run that does nothing, with the same methods.

`attach` also takes what cannot be a variable: `optimizer` and `scheduler`, each one or several; `detectors`, what to
look for; `on_event` and `on_checkpoint`, functions to call.
"""


def page() -> str:
    rows = []
    for field in dataclasses.fields(Settings):
        default = "" if field.default is None else f"`{field.default!r}`"
        variable = f"`{variable_of(field.name)}`"
        rows.append(f"| `{field.name}` | {variable} | {default} | {field.metadata['doc']} |\n")
    return HEAD + "".join(rows) + TAIL


if __name__ == "__main__":
    print(page(), end="")
