"""Write the committed dashboards anew: ``python -m monitor.grafana [DIRECTORY]``."""

from __future__ import annotations

import sys
from pathlib import Path

from monitor.grafana._files import export

_COMMITTED = Path(__file__).resolve().parents[2] / "dashboards" / "grafana"

if __name__ == "__main__":
    for path in export(sys.argv[1] if len(sys.argv) > 1 else _COMMITTED):
        print(path)
