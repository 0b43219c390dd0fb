"""Replay: read finished curves, run the detectors over them, and draw what they find."""

from monitor.replay._curves import Curve, read_curve
from monitor.replay._plot import write_plot
from monitor.replay._replay import as_json, as_line, replay

__all__ = ["Curve", "as_json", "as_line", "read_curve", "replay", "write_plot"]
