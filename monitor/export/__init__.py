"""Prometheus: the catalogue as one table, a Collector over snapshots, content negotiation."""

from ._catalogue import CATALOGUE, SECTIONS, Metric
from ._collector import RunCollector
from ._docs import render_docs
from ._render import Exporter

__all__ = ["CATALOGUE", "SECTIONS", "Exporter", "Metric", "RunCollector", "render_docs"]
