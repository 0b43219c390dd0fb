"""Quality values of the Accept header (RFC 9110, 12.4.2), which prometheus_client does not look at."""

from __future__ import annotations

import re
from typing import NamedTuple

OPENMETRICS = "application/openmetrics-text"
TEXT = "text/plain"
_QUALITY = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")


class _Range(NamedTuple):
    """One element of the header: a media range, its quality and the element as it stands."""

    media: str
    quality: float
    text: str


def narrowed(accept: str) -> str:
    """Return the header with only those elements left that ask for the format to be served, the most wanted first.

    The format is the one of higher quality; OpenMetrics, where the header names it and wants it as much as text. A
    quality of 0 is "not acceptable". The most specific range that fits counts: ``*/*`` says nothing about what is
    named. Where nothing is acceptable the answer is text all the same: a scrape that fails says less than one in the
    other format. Prometheus sends versions of OpenMetrics with falling quality; which of them is chosen is
    prometheus_client's business.

    >>> narrowed("application/openmetrics-text;q=0, text/plain")
    'text/plain'
    >>> narrowed("application/openmetrics-text; version=1.0.0; q=0.5, text/plain; q=0.4, */*; q=0.1")
    'application/openmetrics-text; version=1.0.0; q=0.5'
    """
    ranges = [_range(text) for text in accept.split(",")]
    openmetrics, text = _quality(ranges, OPENMETRICS), _quality(ranges, TEXT)
    is_named = any(r.media in (OPENMETRICS, "application/*") for r in ranges)
    wanted = OPENMETRICS if openmetrics > 0 and (openmetrics > text or (is_named and openmetrics == text)) else TEXT
    chosen = [r for r in ranges if r.media == wanted and r.quality > 0]
    chosen.sort(key=lambda r: -r.quality)  # stable: what is wanted alike stays in the header's order
    return ",".join(r.text for r in chosen) or wanted


def _range(element: str) -> _Range:
    media, *parameters = element.split(";")
    quality = 1.0
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "q":
            quality = _as_quality(value.strip())
    return _Range(media.strip().lower(), quality, ";".join([media.strip().lower(), *parameters]).strip())


def _as_quality(value: str) -> float:
    """Return a quality value; one that is none is 1, as if it were not there."""
    return float(value) if _QUALITY.fullmatch(value) else 1.0


def _quality(ranges: list[_Range], media: str) -> float:
    """Return how much a media type is wanted: by the most specific range that fits, the highest of several."""
    for fitting in (media, f"{media.partition('/')[0]}/*", "*/*"):
        if found := [r.quality for r in ranges if r.media == fitting]:
            return max(found)
    return 0.0
