"""Several ranks as one run: each rank sends its share of every step to rank 0's watcher, which adds them up."""

from __future__ import annotations

from monitor.ranks._receiver import ShareReceiver
from monitor.ranks._sender import ShareSender
from monitor.ranks._share import Share, share_of
from monitor.ranks._sums import StepSums

__all__ = ["Share", "ShareReceiver", "ShareSender", "StepSums", "share_of"]
