"""Run folders: what a run leaves on this machine, who reads it, and the thread that touches the disk."""

from monitor.store._command import own_command
from monitor.store._disk import PATIENCE_SECONDS, DiskThread, answer_within
from monitor.store._folder import RunFolder, make_run_id, prune
from monitor.store._known import KnownRun, NoHomeError, list_runs, read_text, runs_directory

__all__ = [
    "PATIENCE_SECONDS",
    "DiskThread",
    "KnownRun",
    "NoHomeError",
    "RunFolder",
    "answer_within",
    "list_runs",
    "make_run_id",
    "own_command",
    "prune",
    "read_text",
    "runs_directory",
]
