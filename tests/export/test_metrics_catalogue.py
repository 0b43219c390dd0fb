from __future__ import annotations

import re
from pathlib import Path

import pytest

from monitor.export import CATALOGUE, Metric, render_docs

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
UNITS = ("seconds", "bytes", "ratio", "celsius", "watts", "hertz", "joules")


def test_names_are_unique_and_prefixed():
    """Every metric has one row, and every name begins with training_."""
    names = [metric.name for metric in CATALOGUE]
    assert len(names) == len(set(names))
    assert [name for name in names if not re.fullmatch(r"training_[a-z0-9_]*[a-z0-9]", name)] == []


def test_suffixes_follow_the_type():
    """Counters, and only they, end in _total; info metrics, and only they, in _info."""
    for metric in CATALOGUE:
        assert metric.name.endswith("_total") == (metric.type == "counter"), metric.name
        assert metric.name.endswith("_info") == (metric.type == "info"), metric.name


def test_a_name_that_ends_in_a_unit_declares_it():
    """The unit of a metric is the last word of its family, and no unit hides in a label."""
    for metric in CATALOGUE:
        word = metric.family.rsplit("_", 1)[-1]
        assert metric.unit == (word if word in UNITS else ""), metric.name
        assert not set(metric.labels) & set(UNITS), metric.name


def test_run_id_is_not_repeated():
    """run_id is on every series by rule, so no row lists it."""
    assert [metric.name for metric in CATALOGUE if "run_id" in metric.labels] == []


@pytest.mark.parametrize(
    ("name", "kind", "family"),
    [
        ("training_steps_total", "counter", "training_steps"),
        ("training_run_info", "info", "training_run"),
        ("training_run_state", "stateset", "training_run_state"),
        ("training_loss", "gauge", "training_loss"),
    ],
)
def test_the_family_is_named_as_in_openmetrics(name, kind, family):
    """The family of a counter or info metric drops the suffix."""
    assert Metric(name, kind, (), "", "").family == family


def test_the_documentation_page_is_current():
    """docs/metrics.md is what the catalogue renders to."""
    assert PAGE.read_text(encoding="utf-8") == render_docs(), "run: python docs/make_pages.py"
