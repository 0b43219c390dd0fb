"""A run in its training process: ``attach``, the run as its user sees it, and the parts behind it."""

from monitor.run._attach import attach
from monitor.run._find import newest, watching
from monitor.run._run import LearningRate, Run

__all__ = ["LearningRate", "Run", "attach", "newest", "watching"]
