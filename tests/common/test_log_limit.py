"""Lines that are alike are bounded; how many were left out is said."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from monitor.common import PASSED_ON, bound_lines
from monitor.common import _log_limit as log_limit


@pytest.fixture
def logger(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[logging.Logger]:
    """A bounded logger that lets one line pass at once and none after it, until the clock is moved."""
    monkeypatch.setattr(log_limit, "BURST_LINES", 1)
    logger = logging.getLogger("monitor.tests.bounded")
    logger.addFilter(log_limit._Bounded(lambda: now[0]))
    now[0] = 0.0
    with caplog.at_level(logging.INFO, logger.name):
        yield logger
    logger.filters.clear()


now = [0.0]


def test_lines_of_one_place_are_bounded(logger: logging.Logger, caplog: pytest.LogCaptureFixture) -> None:
    """The next one that passes says how many it stands for; another place has lines of its own."""
    for number in range(5):
        now[0] = 0.0 if number < 4 else 1.0
        logger.warning("refused %d", number)
    logger.warning("another")
    assert caplog.messages == ["refused 0", "refused 4 (3 lines like it were left out)", "another"]


def test_a_line_that_is_passed_on_is_not_bounded_twice(
    logger: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    """All lines of the watcher come from one place here."""
    for number in range(3):
        logger.info("%s", number, extra=PASSED_ON)
    assert caplog.messages == ["0", "1", "2"]


def test_each_run_has_lines_of_its_own(logger: logging.Logger, caplog: pytest.LogCaptureFixture) -> None:
    """Who attaches a thousand short runs in one process reads of each of them."""
    for _ in range(3):
        bound_lines(logger)
        logger.info("a run ends")
    assert len(caplog.messages) == 3
    assert len(logger.filters) == 1
