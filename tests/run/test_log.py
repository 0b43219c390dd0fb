"""Failures of the monitor itself are counted by component and logged once a kind."""

from __future__ import annotations

import pytest

from monitor.link._failures import MAX_KINDS, FailureReporter


def test_a_kind_of_failure_is_logged_once_and_counted_each_time(caplog: pytest.LogCaptureFixture) -> None:
    """A kind is a component and a class of exceptions; whoever wants to hears of each once."""
    told: list[tuple[str, str]] = []
    failures = FailureReporter(lambda component, message: told.append((component, message)))
    for error in (OSError("first"), OSError("second"), ValueError("third")):
        failures.note("folder", error)
    failures.note("server", OSError("fourth"), line="no page")
    assert told == [
        ("folder", "folder: OSError: first"),
        ("folder", "folder: ValueError: third"),
        ("server", "server: OSError: fourth"),
    ]
    assert [record.getMessage() for record in caplog.records] == [
        "contained a failure in folder: OSError: first; training continues",
        "contained a failure in folder: ValueError: third; training continues",
        "no page",
    ]
    assert (failures.counts["folder"], failures.counts["server"]) == (3, 1)


def test_a_reporter_belongs_to_one_component() -> None:
    """A part is given the reporter of its component, and hands it the exception alone."""
    failures = FailureReporter()
    of_policy, of_export = failures.of("policy"), failures.of("export")
    of_policy(ValueError("one"))
    of_policy(KeyError("two"))
    of_export(OSError("three"))
    failures.contain("server", lambda: 1 / 0)
    assert failures.counts == {"policy": 2, "export": 1, "server": 1}


def test_the_kinds_of_failures_that_are_kept_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """Exception classes made without end fill neither the memory nor the log; each failure counts."""
    failures = FailureReporter()
    for number in range(MAX_KINDS + 50):
        failures.note("log", type(f"Error{number}", (Exception,), {})("made anew"))
    assert len(caplog.records) == MAX_KINDS
    assert failures.counts["log"] == MAX_KINDS + 50


def test_a_failure_of_the_report_is_contained() -> None:
    """A reader that raises is no second failure, and what cannot be shown as text is counted all the same."""

    class MuteError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    failures = FailureReporter(lambda *_: 1 / 0)  # type: ignore[arg-type, return-value]
    failures.note("export", OSError("first"))
    failures.note("export", MuteError())
    assert failures.counts["export"] == 2
