"""One thread that turns tape entries into numbers, feeds the detectors and publishes immutable snapshots. No torch
here."""

from monitor.recorder._recorder import Recorder

__all__ = ["Recorder"]
