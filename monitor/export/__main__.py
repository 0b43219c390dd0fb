"""Print the documentation page of the metrics: ``python -m monitor.export --docs > docs/metrics.md``."""

from __future__ import annotations

import argparse
import sys

from monitor.export._docs import render_docs


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m monitor.export", description=__doc__)
    parser.add_argument("--docs", action="store_true", required=True, help="print the metric catalogue as Markdown")
    parser.parse_args()
    sys.stdout.write(render_docs())


if __name__ == "__main__":
    main()
