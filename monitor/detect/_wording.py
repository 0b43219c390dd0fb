"""The phrases that the messages of several detectors share."""

from __future__ import annotations

REDUCE = "Lower the learning rate (`monitor lr reduce 0.5`)"


def show(value: float) -> str:
    """Write a number for a person: four significant digits.

    >>> show(2.30712), show(1e-7)
    ('2.307', '1e-07')
    """
    return f"{value:.4g}"


def last_good(step: int | None) -> str:
    """Return the last good step as the end of a clause.

    >>> last_good(300), last_good(None)
    ('; last good step 300', '')
    """
    return "" if step is None else f"; last good step {step}"


def checkpoint(start: int, last_good_step: int | None) -> str:
    """Return which checkpoint to go back to from a trouble that began at ``start``.

    >>> checkpoint(301, 300), checkpoint(301, None)
    ('the checkpoint of step 300 or before', 'a checkpoint from before step 301')
    """
    if last_good_step is None:
        return f"a checkpoint from before step {start}"
    return f"the checkpoint of step {last_good_step} or before"
