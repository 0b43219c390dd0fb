"""The recorder: entries into steps, steps into figures, history, events and snapshots."""

from monitor.recorder._decoder import Decoder
from monitor.recorder._events import EventLog
from monitor.recorder._past import Past
from monitor.recorder._recorder import Recorder
from monitor.recorder._source import EntrySource

__all__ = ["Decoder", "EntrySource", "EventLog", "Past", "Recorder"]
