"""Find the open runs of this process again, for code that did not attach them."""

from __future__ import annotations

from typing import Any

from monitor.run._open_runs import open_runs
from monitor.run._optimizers import named
from monitor.run._run import Run


def newest() -> Run | None:
    """Return the run that was attached last and is still open; None where none is."""
    engines = open_runs()
    return Run(engines[-1]) if engines else None


def watching(optimizer: Any) -> Run | None:
    """Return the open run that watches an optimizer, or one of several; None where none does."""
    wanted = {id(one) for one in named(optimizer).values()}
    for engine in open_runs():
        if wanted & {id(one) for one in engine.optimizers.values()}:
            return Run(engine)
    return None
