"""The only code on the training thread: hooks and patches that note facts and append them to the step buffer.

The way of a sample: the patches (:mod:`._loss`, :mod:`._clipping`, :mod:`._scaler`, :mod:`._loading`, put in and taken
out by :mod:`._patches`) write into the thread's :class:`~._trace.Trace` and into each optimizer's
:class:`~._attribution.LossAttribution`; the step hooks of :mod:`._steps` take what is in both at each optimizer step
and append one entry to the :class:`~._step_buffer.StepBuffer`, from which it goes to the recorder.
"""

from monitor.probe._blindness import Blindness
from monitor.probe._compilation import untraced
from monitor.probe._forerunner import Forerunner
from monitor.probe._forward import ForwardWatch
from monitor.probe._step_buffer import StepBuffer
from monitor.probe._steps import NEVER, StepProbe
from monitor.probe._values import Value, take

__all__ = ["NEVER", "Blindness", "Forerunner", "ForwardWatch", "StepBuffer", "StepProbe", "Value", "take", "untraced"]
