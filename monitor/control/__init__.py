"""The only hand that touches a learning rate.

A command travels: :class:`Commands` accepts it (any thread), the training thread takes it at the next step boundary,
:class:`LearningRates` carries it
out, the outcome and an audit event go back.
"""

from monitor.control._adaptive import AdaptiveLR
from monitor.control._boundary import Boundary, audit, describe
from monitor.control._commands import Command, Commands
from monitor.control._in_force import in_force
from monitor.control._lr import LearningRates
from monitor.control._lr_scaling import LRScaling
from monitor.control._policy import Policies, Policy, Reaction, ReduceLROn, Request, check_policies
from monitor.control._rank_store import store_host, world
from monitor.control._ranks import FOLLOWS, Ranks
from monitor.control._stack_taker import StackTaker
from monitor.control._stacks import Stacks

__all__ = [
    "FOLLOWS",
    "AdaptiveLR",
    "Boundary",
    "Command",
    "Commands",
    "LRScaling",
    "LearningRates",
    "Policies",
    "Policy",
    "Ranks",
    "Reaction",
    "ReduceLROn",
    "Request",
    "StackTaker",
    "Stacks",
    "audit",
    "check_policies",
    "describe",
    "in_force",
    "store_host",
    "world",
]
