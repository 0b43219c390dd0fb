"""The rule files: kept by hand in this package, with the address of the runbook filled in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from string import Template

RUNBOOK = "docs/alerts.md"
_FILES = Path(__file__).resolve().parent / "rules"


def render_files(runbook: str = RUNBOOK) -> Mapping[str, str]:
    """Return the rule files by name.

    Args:
        runbook: address of docs/alerts.md, as your readers reach it; ``runbook_url`` is an anchor in it.

    >>> sorted(render_files())
    ['alerts.yml', 'recording.yml']
    """
    # "safe": what Prometheus fills in, such as $labels and $value, stays as it is
    return {
        path.name: Template(path.read_text(encoding="utf-8")).safe_substitute(runbook=runbook)
        for path in sorted(_FILES.glob("*.yml"))
    }
