"""Content negotiation: the same families as Prometheus text or as OpenMetrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder

from monitor._records import Snapshot
from monitor.export._accept import narrowed
from monitor.export._collector import OnError, RunCollector, log_error


class Exporter:
    """Serve one run's metrics, and those of its process, from a private registry.

    >>> exporter = Exporter(run.snapshot)
    >>> body, content_type = exporter.render(accept=None)
    >>> content_type
    'text/plain; version=...'
    """

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        max_groups: int = 64,
        *,
        on_error: OnError = log_error,
        registry: CollectorRegistry | None = None,
    ) -> None:
        self.registry = CollectorRegistry() if registry is None else registry
        self.registry.register(RunCollector(snapshot, max_groups, on_error=on_error))
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def render(self, accept: str | None, names: Sequence[str] = ()) -> tuple[bytes, str]:
        """Render one scrape; return the body, not compressed, and its content type.

        ``accept`` is the request's Accept header: OpenMetrics 1.0 where it is asked for and not wanted less than
        text, else the text format. ``names`` (the ``name[]`` parameters) restricts the scrape to these sample names;
        none: all.
        """
        encode, content_type = _choose(accept)
        registry: Any = self.registry.restricted_registry(names) if names else self.registry
        return encode(registry), content_type


def content_type_of(accept: str | None) -> str:
    """Return the content type of a scrape that is asked for with this Accept header.

    >>> content_type_of("text/plain")
    'text/plain; version=0.0.4; charset=utf-8'
    """
    return _choose(accept)[1]


def _choose(accept: str | None) -> tuple[Callable[[Any], bytes], str]:
    try:
        return choose_encoder(narrowed(accept or ""))
    except (TypeError, ValueError):
        # prometheus_client compares the version as it stands in the header: "version=x" is a TypeError there.
        return choose_encoder("")
