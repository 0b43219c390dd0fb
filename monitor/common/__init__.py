"""Mechanisms that several packages share: containment, a history in bounded memory, a periodic thread."""

from monitor.common._contain import contained
from monitor.common._history import SIZE, BoundedHistory, Bucket, thinned
from monitor.common._loop import Loop

__all__ = ["SIZE", "BoundedHistory", "Bucket", "Loop", "contained", "thinned"]
