"""The Collector: one published snapshot in, all metric families out. No scrape can reset anything."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from itertools import islice

from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from monitor._records import Collection, Snapshot
from monitor.common import contained
from monitor.export._catalogue import CATALOGUE
from monitor.export._samples import Samples, new_family
from monitor.export._sections import (
    TRAINING_SECTIONS,
    Section,
    count_dropped,
    labelled_groups,
    render_gpus,
    render_groups,
    render_host,
)

_LOG = logging.getLogger("monitor")
OnError = Callable[[BaseException], None]


def log_error(error: BaseException) -> None:
    """Log a contained failure: what happens to it where nobody counts them."""
    _LOG.warning("export failed: %r", error)


class RunCollector(Collector):
    """Render a snapshot through the catalogue at every scrape.

    ``snapshot`` gives the latest published state and must not block. The first ``max_groups`` param groups
    of a run (default 64) are exported; the series of the others are counted in
    ``training_monitor_dropped_series``. A section that fails goes to ``on_error(error)`` and takes
    no other section with it.

    >>> from prometheus_client import CollectorRegistry
    >>> registry = CollectorRegistry()
    >>> registry.register(RunCollector(run.snapshot))
    """

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        max_groups: int = 64,
        *,
        on_error: OnError = log_error,
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        if max_groups < 1:
            raise ValueError(f"max_groups must be at least 1, got {max_groups}")
        self._snapshot = snapshot
        self._max_groups = max_groups
        self._on_error = on_error
        self._timer = timer
        self._run_id = ""

    def describe(self) -> Iterator[Family]:
        """Name all families without rendering any: the registry asks at registration."""
        return (new_family(metric) for metric in CATALOGUE)

    def collect(self) -> Iterator[Family]:
        """Give the families of the latest snapshot, in the catalogue's order."""
        started = self._timer()
        snapshot = contained(self._on_error, self._snapshot)
        if snapshot is None:  # the scrape says that it failed
            samples = Samples(self._run_id)
            self._put_collections(samples, {"training": Collection(self._timer() - started, False)})
            return samples.families()
        self._run_id = snapshot.run.run_id
        return self._render(snapshot, started).families()

    def _render(self, snapshot: Snapshot, started: float) -> Samples:
        samples = Samples(snapshot.run.leader or snapshot.run.run_id)
        sections = () if snapshot.run.leader else self._training_sections()  # that of rank 0 has them
        results = [self._try(section, snapshot, samples) for section in sections]
        collections = {"training": Collection(self._timer() - started, all(results))}
        for name, section in (("gpu", render_gpus), ("host", render_host)):
            is_success = self._try(section, snapshot, samples)
            if collection := snapshot.collections.get(name):
                is_success = is_success and collection.is_success
                collections[name] = Collection(collection.duration_seconds, is_success)
        self._put_collections(samples, collections)
        return samples

    def _training_sections(self) -> tuple[Section, ...]:
        return (*TRAINING_SECTIONS, self._render_groups, self._render_dropped)

    def _render_groups(self, snapshot: Snapshot, samples: Samples) -> None:
        render_groups(islice(labelled_groups(snapshot), self._max_groups), samples)

    def _render_dropped(self, snapshot: Snapshot, samples: Samples) -> None:
        dropped = snapshot.dropped_series + count_dropped(snapshot, self._max_groups)
        samples.put("training_monitor_dropped_series", dropped)

    def _try(self, section: Section, snapshot: Snapshot, samples: Samples) -> bool:
        """Render a section apart, so that one that fails half-way leaves no half histogram behind."""
        part = Samples(snapshot.run.leader or snapshot.run.run_id)
        is_whole = contained(self._on_error, section, snapshot, part, default=False) is None
        if is_whole:
            samples.extend(part)
        return is_whole

    def _put_collections(self, samples: Samples, collections: dict[str, Collection]) -> None:
        for name, collection in collections.items():
            samples.put("training_monitor_collect_duration_seconds", collection.duration_seconds, name)
            samples.put("training_monitor_collect_success", float(collection.is_success), name)
