"""Mechanisms that several packages share: a history in bounded memory, and a periodic thread."""

from monitor.common._history import SIZE, BoundedHistory, Bucket
from monitor.common._loop import Loop

__all__ = ["SIZE", "BoundedHistory", "Bucket", "Loop"]
