"""What is different in a notebook: cells are run again, and what they made before is still there."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, Protocol


class Cell(NamedTuple):
    """A cell that is being run: what it is known by, and the number of this execution."""

    id: str
    execution: int


class CellRun(Protocol):
    """What is asked of a run here."""

    @property
    def optimizers(self) -> Mapping[str, Any]:
        """The optimizers that are still there, by name."""

    @property
    def cell(self) -> Cell | None:
        """Of which cell it is; None outside of notebooks."""

    def close(self) -> None:
        """End the run."""


def current_cell() -> Cell | None:
    """Return the cell that is being run, known by the notebook's id for it, else by its text; None outside of
    IPython."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None:
        return None
    execution = int(shell.execution_count)
    with suppress(Exception):  # what a front end sends, and a kernel keeps, is theirs
        if found := shell.kernel.get_parent("shell")["metadata"].get("cellId"):
            return Cell(str(found), execution)
    with suppress(Exception):
        return Cell(str(shell.user_ns["In"][-1]), execution)
    return Cell("", execution)


def replace_earlier(runs: Iterable[CellRun], cell: Cell | None, optimizers: Iterable[Any]) -> None:
    """End the runs that cells have made before: that watch one of these optimizers, are of an earlier execution of the
    same cell, or have no optimizer left. Outside of a notebook nothing is ended."""
    if cell is None:
        return
    wanted = {id(one) for one in optimizers}
    for run in runs:
        watched = {id(one) for one in run.optimizers.values()}
        if run.cell is None or run.cell.execution == cell.execution:
            continue
        if not watched or watched & wanted or (cell.id and run.cell.id == cell.id):
            run.close()
