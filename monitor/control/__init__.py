"""The only hand that touches a learning rate.

A command travels: :class:`Commands` accepts it (any thread), the training thread takes it at the next step boundary,
:class:`LearningRates` carries it
out, the outcome and an audit event go back.
"""

from monitor.control._boundary import Boundary, audit, describe
from monitor.control._commands import Command, Commands
from monitor.control._door import Door
from monitor.control._lr import LearningRates

__all__ = ["Boundary", "Command", "Commands", "Door", "LearningRates", "audit", "describe"]
