"""The watcher: puts recorder, detectors, readings, run folder and server of one run together. Imports no torch."""

from monitor.watcher._ended_run import EndedRun
from monitor.watcher._watcher import Watcher

__all__ = ["EndedRun", "Watcher"]
