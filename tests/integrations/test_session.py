"""What every integration shares: no name and no value of a framework ends a training."""

from __future__ import annotations

from typing import Any

import torch

from monitor.integrations._session import Session


class Odd:
    """A value that fails when it is looked at."""

    def numel(self) -> int:
        raise RuntimeError("not now")


def test_names_and_values_of_any_kind_are_harmless() -> None:
    """A metric called `self`, a name that is no text, a value that raises; the others arrive."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    session = Session()
    session.open(lambda: (optimizer, None, {"name": "odd"}))
    run: Any = session.run
    session.log({"self": 1.0, 7: 2.0, "accuracy": 0.5, "note": "text"})
    session.log({"odd": Odd()})
    session.close()
    assert run.snapshot().metrics == {"7": 2.0, "accuracy": 0.5}


def test_what_cannot_be_found_out_ends_no_training() -> None:
    """A framework of another version lacks what is asked of it: no run, no exception."""

    def look() -> Any:
        raise AttributeError("estimated_stepping_batches")

    session = Session()
    session.open(look)
    session.log({"accuracy": 1.0})
    session.close()
    assert session.run is None
