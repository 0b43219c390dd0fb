"""Write the committed rule files anew: ``python -m monitor.alerts [DIRECTORY] [--runbook URL]``."""

from __future__ import annotations

import argparse
from pathlib import Path

from monitor.alerts._files import RUNBOOK, render_files

_COMMITTED = Path(__file__).resolve().parents[2] / "dashboards" / "prometheus" / "rules"


def main() -> None:
    """Write the files and print their paths."""
    parser = argparse.ArgumentParser(prog="python -m monitor.alerts", description=__doc__)
    parser.add_argument("directory", nargs="?", type=Path, default=_COMMITTED, help="default: %(default)s")
    parser.add_argument("--runbook", default=RUNBOOK, help="address of docs/alerts.md (default: %(default)s)")
    given = parser.parse_args()
    given.directory.mkdir(parents=True, exist_ok=True)
    for name, text in render_files(given.runbook).items():
        (given.directory / name).write_text(text, encoding="utf-8")
        print(given.directory / name)


if __name__ == "__main__":
    main()
