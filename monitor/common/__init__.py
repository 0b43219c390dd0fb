"""Mechanisms that several packages share: containment, a history in bounded memory, a periodic thread, names of param
groups, names and text that are fit to be shown, bounds for what is logged and rendered."""

from monitor.common._contain import contained
from monitor.common._group_names import group_names
from monitor.common._history import SIZE, BoundedHistory, Bucket, thinned
from monitor.common._log_limit import PASSED_ON, Allowance, bound_lines
from monitor.common._loop import Loop
from monitor.common._names import MAX_NAME, as_name, is_shortened
from monitor.common._printable import keep_printable, one_line, printable
from monitor.common._renderings import Renderings

__all__ = [
    "MAX_NAME",
    "PASSED_ON",
    "SIZE",
    "Allowance",
    "BoundedHistory",
    "Bucket",
    "Loop",
    "Renderings",
    "as_name",
    "bound_lines",
    "contained",
    "group_names",
    "is_shortened",
    "keep_printable",
    "one_line",
    "printable",
    "thinned",
]
