"""What is different in a notebook: cells are run again, and what they made before is still there."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, Protocol


class CellRun(Protocol):
    """What is asked of a run here."""

    @property
    def optimizers(self) -> Mapping[str, Any]:
        """The optimizers that are still there, by name."""

    @property
    def cell(self) -> str | None:
        """Of which cell it is; None outside of notebooks."""

    def close(self) -> None:
        """End the run."""


def current_cell() -> str | None:
    """Return what the cell that is being run is known by: the notebook's id for it, else its text; None outside of
    IPython."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None:
        return None
    with suppress(Exception):  # what a front end sends, and a kernel keeps, is theirs
        if found := shell.kernel.get_parent("shell")["metadata"].get("cellId"):
            return str(found)
    with suppress(Exception):
        return str(shell.user_ns["In"][-1])
    return ""


def replace_earlier(runs: Iterable[CellRun], cell: str | None, optimizers: Iterable[Any]) -> None:
    """End the runs that a cell has made before: that watch one of its optimizers, are of the same cell, or have no
    optimizer left. Outside of a notebook nothing is ended."""
    if cell is None:
        return
    wanted = {id(one) for one in optimizers}
    for run in runs:
        watched = {id(one) for one in run.optimizers.values()}
        if run.cell is not None and (not watched or watched & wanted or (cell and run.cell == cell)):
            run.close()
