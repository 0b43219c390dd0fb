"""All rules, in the order of the files."""

from __future__ import annotations

from monitor.alerts._machine_rules import GPU, MONITOR, THROUGHPUT
from monitor.alerts._rule import RuleGroup
from monitor.alerts._training_rules import GRADIENTS, LOSS, RECORDED, RUNS

RECORDING_GROUPS = (RuleGroup("training-recording", RECORDED),)
ALERT_GROUPS = (RUNS, LOSS, GRADIENTS, THROUGHPUT, GPU, MONITOR)
GROUPS = (*RECORDING_GROUPS, *ALERT_GROUPS)
