"""Mechanisms that several packages share: containment, a history in bounded memory, a periodic thread, text that cannot
steer a terminal."""

from monitor.common._contain import contained
from monitor.common._history import SIZE, BoundedHistory, Bucket, thinned
from monitor.common._loop import Loop
from monitor.common._printable import keep_printable, one_line, printable

__all__ = [
    "SIZE",
    "BoundedHistory",
    "Bucket",
    "Loop",
    "contained",
    "keep_printable",
    "one_line",
    "printable",
    "thinned",
]
