"""Runs that begin by themselves, under ``MONITOR=1``: without a line in the script.

:mod:`._noting` is put into torch when it is imported and notes what is made; with the first optimizer :mod:`._runs` is
loaded, which begins and ends the runs. :mod:`._schedules` tells the number of steps from a scheduler, :mod:`._exits`
how the program ends.
"""

from __future__ import annotations

from monitor._settings import is_disabled


def begin() -> None:
    """Have runs begin by themselves in this process from now on; to be called once torch has been imported.

    Under ``MONITOR_DISABLED=1`` nothing happens.
    """
    if not is_disabled():
        from monitor.auto._noting import note_all

        note_all()
