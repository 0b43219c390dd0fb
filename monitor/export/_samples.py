"""Samples of one scrape, kept to the catalogue: a name that is not in the table does not get out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate

from prometheus_client.metrics_core import Metric as Family
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

from monitor._records import Histogram
from monitor.export._catalogue import BY_NAME, CATALOGUE, Metric


class Samples:
    """Samples by metric name. ``None`` is not put; counters, sums and histograms take finite values only."""

    def __init__(self, run_id: str) -> None:
        self._run_id = _encodable(run_id)
        self._by_name: dict[str, list[Sample]] = {}

    def put(self, name: str, value: float | None, *labels: str) -> None:
        """Put one sample; ``labels`` are the values for the catalogue's labels, in its order.

        >>> samples = Samples("run-1")
        >>> samples.put("training_loss", 0.5, "SGD")
        """
        metric = BY_NAME[name]
        if value is None or (metric.type == "counter" and not math.isfinite(value)):
            return
        self._append(metric, Sample(name, self._labels(metric, labels), value))

    def put_states(self, name: str, current: str, states: tuple[str, ...]) -> None:
        """Put one sample a state: 1 for the current one, 0 for the others."""
        metric = BY_NAME[name]
        for state in states:
            self._append(metric, Sample(name, self._labels(metric, (state,)), float(state == current)))

    def put_summary(self, name: str, total: float, count: int, *labels: str) -> None:
        """Put a sum and a count."""
        if not math.isfinite(total):
            return
        metric = BY_NAME[name]
        pairs = self._labels(metric, labels)
        self._append(metric, Sample(f"{name}_count", pairs, count), Sample(f"{name}_sum", pairs, total))

    def put_histogram(self, name: str, histogram: Histogram | None, *labels: str) -> None:
        """Put the cumulative buckets, the count and the sum of a histogram."""
        if histogram is None or not math.isfinite(histogram.sum):
            return
        metric = BY_NAME[name]
        pairs = self._labels(metric, labels)
        bucket = f"{name}_bucket"
        counts = tuple(accumulate(histogram.counts))
        for bound, count in zip(_bound_labels(histogram.bounds), counts, strict=True):
            self._append(metric, Sample(bucket, {**pairs, "le": bound}, count))
        self._append(metric, Sample(f"{name}_count", pairs, counts[-1]), Sample(f"{name}_sum", pairs, histogram.sum))

    def extend(self, other: Samples) -> None:
        """Take over what another set of samples holds."""
        for name, samples in other._by_name.items():
            self._by_name.setdefault(name, []).extend(samples)

    def families(self) -> Iterator[Family]:
        """Give one metric family for each metric that has samples, in the catalogue's order."""
        for metric in CATALOGUE:
            if samples := self._by_name.get(metric.name):
                family = new_family(metric)
                family.samples = samples
                yield family

    def _labels(self, metric: Metric, values: tuple[str, ...]) -> dict[str, str]:
        labels = {"run_id": self._run_id}
        for label, value in zip(metric.labels, values, strict=True):
            labels[label] = value if value.isascii() else _encodable(value)
        return labels

    def _append(self, metric: Metric, *samples: Sample) -> None:
        self._by_name.setdefault(metric.name, []).extend(samples)


def new_family(metric: Metric) -> Family:
    """Make an empty metric family for a row of the catalogue."""
    return Family(metric.family, metric.help, metric.type, metric.unit)


@lru_cache(maxsize=16)
def _bound_labels(bounds: tuple[float, ...]) -> tuple[str, ...]:
    return (*(str(floatToGoString(bound)) for bound in bounds), "+Inf")  # type: ignore[no-untyped-call]


def _encodable(text: str) -> str:
    # A lone surrogate in one label value (a file name, a user's metric) would fail the whole scrape.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
