"""Prometheus: the catalogue as one table, a Collector over snapshots, content negotiation."""

from monitor.export._catalogue import CATALOGUE, SECTIONS, Metric
from monitor.export._collector import RunCollector
from monitor.export._docs import render_docs
from monitor.export._render import Exporter, content_type_of

__all__ = ["CATALOGUE", "SECTIONS", "Exporter", "Metric", "RunCollector", "content_type_of", "render_docs"]
