"""The link between the training process and the watcher: entries, messages, and the pipes that carry them."""

from monitor.link._entries import (
    NUM_SAMPLE_FIELDS,
    TIME,
    ClipNote,
    Details,
    Kind,
    Norms,
    Opened,
    Pass,
    RawClip,
    RawEntry,
    SampleEntry,
    Span,
    SpreadNorms,
    StepEntry,
)
from monitor.link._failures import FailureReporter
from monitor.link._frames import (
    ENTRIES,
    MESSAGE,
    Pipe,
    hold_back_sigpipe,
    pack_entries,
    pack_message,
    unpack_entries,
    unpack_message,
)
from monitor.link._in_force import InForce, applied_lr, shown_in_force
from monitor.link._messages import RECORDED, VERSION, Hello, TrainingState
from monitor.link._process import WatcherProcess, far, start_watcher, why_not_apart
from monitor.link._refusals import Refusals

__all__ = [
    "ENTRIES",
    "MESSAGE",
    "NUM_SAMPLE_FIELDS",
    "RECORDED",
    "TIME",
    "VERSION",
    "ClipNote",
    "Details",
    "FailureReporter",
    "Hello",
    "InForce",
    "Kind",
    "Norms",
    "Opened",
    "Pass",
    "Pipe",
    "RawClip",
    "RawEntry",
    "Refusals",
    "SampleEntry",
    "Span",
    "SpreadNorms",
    "StepEntry",
    "TrainingState",
    "WatcherProcess",
    "applied_lr",
    "far",
    "hold_back_sigpipe",
    "pack_entries",
    "pack_message",
    "shown_in_force",
    "start_watcher",
    "unpack_entries",
    "unpack_message",
    "why_not_apart",
]
