"""What a text of an alert says about the case: Prometheus' templates, by a name."""

from __future__ import annotations

RUN_ID = "{{ $labels.run_id }}"
GPU_ID = "{{ $labels.gpu }}"
INSTANCE = "{{ $labels.instance }}"
ACTION = "{{ $labels.action }}"
SOURCE = "{{ $labels.source }}"
OUTCOME = "{{ $labels.outcome }}"
COLLECTOR = "{{ $labels.collector }}"
COMPONENT = "{{ $labels.component }}"
REASON = "{{ $labels.reason }}"
SHARE = "{{ $value | humanizePercentage }}"
NUMBER = "{{ $value | humanize }}"
DURATION = "{{ $value | humanizeDuration }}"
COUNT = '{{ $value | printf "%.0f" }}'
