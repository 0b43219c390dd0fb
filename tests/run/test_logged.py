"""run.log takes whatever a program holds: what is a number is shown, the rest is one line, and nothing is raised."""

from __future__ import annotations

import functools
import logging
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from torch import nn

import monitor
from monitor._records import Snapshot
from monitor.common import MAX_NAME, as_name

HUGE = 10**5000


class UserError(Exception):
    """What a value's own methods raise here; it cannot be printed either."""

    def __str__(self) -> str:
        raise SystemExit(3)

    __repr__ = __str__


class ClassThatRaises(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise UserError


def hostile(error: Callable[[], BaseException], base: type = object) -> Any:
    """A value each of whose methods raises."""

    def refuse(*_: Any) -> Any:
        raise error()

    names = ("float", "str", "repr", "format", "index", "int", "len", "iter", "hash", "eq", "bool", "getattr")
    body: dict[str, Any] = {f"__{name}__": refuse for name in names}
    body |= {"__class__": property(refuse), "item": refuse}
    return type("Hostile", (base,), body)()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[monitor.Run]:
    optimizer = torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=0.1)
    with monitor.attach(optimizer, serve=False, gpu=False, directory=str(tmp_path), detectors=()) as run:
        yield run


def digested(run: monitor.Run) -> Snapshot:
    assert run.flush()
    return run.snapshot()


NUMBERS = {
    "int": (3, 3.0),
    "bool": (True, 1.0),
    "Decimal": (Decimal("0.25"), 0.25),
    "Fraction": (Fraction(1, 4), 0.25),
    "numpy float16": (np.float16(0.5), 0.5),
    "numpy int": (np.int64(7), 7.0),
    "numpy bool": (np.bool_(True), 1.0),
    "0-d array": (np.array(0.5), 0.5),
    "1-element array": (np.array([[0.5]]), 0.5),
    "0-d tensor": (torch.tensor(0.5), 0.5),
    "1-element tensor": (torch.tensor([[0.5]], requires_grad=True), 0.5),
    "bfloat16": (torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
    "parameter": (nn.Parameter(torch.tensor(0.5)), 0.5),
    "infinity": (math.inf, math.inf),
}


@pytest.mark.parametrize(("value", "expected"), NUMBERS.values(), ids=NUMBERS)
def test_every_make_of_number_is_shown(run: monitor.Run, value: Any, expected: float) -> None:
    """Numbers of Python, numpy and torch, alone or as the one element of an array, are shown as what they are."""
    run.log(metric=value, val_loss=value)
    snapshot = digested(run)
    assert (snapshot.metrics, snapshot.validation_losses) == ({"metric": expected}, {"validation": expected})
    assert snapshot.errors == {}


# Made anew for each test: what pytest is handed as a parameter it looks into.
OTHERS: dict[str, Callable[[], Any]] = {
    "int of 5,000 digits": lambda: HUGE,
    "int of 5,000 digits below zero": lambda: -HUGE,
    "Fraction beyond a float": lambda: Fraction(HUGE),
    "signalling NaN": lambda: Decimal("sNaN"),
    "complex": lambda: 1j,
    "numpy complex": lambda: np.complex64(1j),
    "complex tensor": lambda: torch.tensor(1j),
    "text": lambda: "x" * 10**6,
    "numpy text": lambda: np.str_("0.5"),
    "bytearray": lambda: bytearray(b"0.5"),
    "array": lambda: np.zeros(3),
    "array of objects": lambda: np.array([object()]),
    "empty tensor": lambda: torch.zeros(0),
    "sparse tensor": lambda: torch.zeros(3).to_sparse(),
    "nested tensor": lambda: torch.nested.nested_tensor([torch.zeros(1), torch.zeros(2)], layout=torch.jagged),
    "class": lambda: float,
    "hostile": lambda: hostile(UserError),
    "hostile, SystemExit": lambda: hostile(lambda: SystemExit(3)),
    "hostile, sys.exit()": lambda: hostile(lambda: sys.exit(3)),  # type: ignore[func-returns-value]
    "hostile, GeneratorExit": lambda: hostile(GeneratorExit),
    "hostile number": lambda: hostile(UserError, float),
    "of a hostile class": lambda: ClassThatRaises("Odd", (), {})(),
    "an exception made of hostile values": lambda: hostile(lambda: ValueError(hostile(UserError), HUGE)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_no_value_is_raised_for(run: monitor.Run, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """What is not a number is counted and said in one short line, however often it comes; the next value is shown."""
    value = OTHERS[name]()
    with caplog.at_level(logging.WARNING, "monitor"):
        for _ in range(3):
            run.log(metric=value)
            run.log(val_loss=value, samples=value, tokens=value)
            run.log(loss=value)
        run.log(metric=0.5)
    snapshot = digested(run)
    assert (snapshot.metrics, snapshot.validation_losses) == ({"metric": 0.5}, {})
    assert snapshot.errors == {"log": 15}
    (line,) = (record.getMessage() for record in caplog.records if "contained" in record.getMessage())
    assert "metric is not a number or a one-element tensor (" in line
    assert len(line) < 400


@pytest.mark.parametrize(
    "value", [torch.tensor(0.5, device="meta"), torch.zeros(1).as_subclass(type("T", (torch.Tensor,), {}))]
)
def test_a_value_that_only_a_sync_could_tell_is_left_out(run: monitor.Run, value: torch.Tensor) -> None:
    """A meta tensor has none, and a subclass may communicate to find it."""
    run.log(metric=value)
    assert (digested(run).metrics, digested(run).errors) == ({}, {})


class Losses(Mapping[Any, Any]):
    """A mapping that raises when it is read."""

    def __getitem__(self, key: Any) -> Any:
        raise UserError

    def __iter__(self) -> Any:
        raise SystemExit(3)

    def __len__(self) -> int:
        raise UserError


class Text(str):
    """A name whose own methods raise."""

    def __str__(self) -> str:
        raise UserError

    __repr__ = __len__ = __hash__ = str.__hash__  # type: ignore[assignment]


def test_names_of_validation_losses_may_be_anything(run: monitor.Run) -> None:
    """What can be written as text is a name; a key that cannot costs its own value and no other."""
    key = type("Key", (), {"__str__": lambda self: sys.exit(3), "__hash__": lambda self: 1})()
    run.log(val_loss={"a": 0.1, 3: 0.2, None: 0.3, ("b", 1): 0.4, key: 0.5, HUGE: 0.6, Text("c"): 0.7})
    run.log(val_loss=Losses())
    snapshot = digested(run)
    assert snapshot.validation_losses == {"a": 0.1, "3": 0.2, "None": 0.3, "('b', 1)": 0.4, "c": 0.7}
    assert snapshot.errors == {"log": 3}


def test_a_long_name_is_cut_visibly() -> None:
    """It has 256 characters, ends in an ellipsis and a checksum, and differs from another that begins alike."""
    first, second = as_name("x" * 10**6 + "1"), as_name("x" * 10**6 + "2")
    assert (len(first), first[:240]) == (MAX_NAME, "x" * 240)
    assert first[-9] == "…"
    assert first != second
    assert as_name("x" * MAX_NAME) == "x" * MAX_NAME


def test_a_name_is_one_line(run: monitor.Run) -> None:
    """Line ends, controls and lone surrogates are escaped: neither the log nor a scrape is broken by a name."""
    names = ["a\nb", "a\rb", "a\x00b", "a\u2028b", "\ud800", "\x1b[31m", 'käse "x" \\', "\n" * 1000]
    run.log(**dict.fromkeys(names, 0.5))
    shown = digested(run).metrics
    assert len(shown) == len(names)
    assert all(name.isprintable() and len(name) <= MAX_NAME for name in shown)
    assert {"a\\nb", "\\x1b[31m", 'käse "x" \\'} <= set(shown)
    from monitor.export import Exporter

    exporter = Exporter(run.snapshot)
    for accept, parse in (("text/plain", parse_text), ("application/openmetrics-text", parse_openmetrics)):
        families = {family.name: family for family in parse(exporter.render(accept)[0].decode())}
        assert {sample.labels["name"] for sample in families["training_metric"].samples} == set(shown)


class Signalled:
    """A number that is asked for at the very moment at which the program is signalled."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __float__(self) -> float:
        os.kill(os.getpid(), self._number)
        return 0.5


class Handler:
    def __call__(self, *_: Any) -> None:
        sys.exit(143)


def leave(code: int, *_: Any) -> None:
    sys.exit(code)


@pytest.mark.parametrize("handler", [lambda *_: sys.exit(143), Handler(), functools.partial(leave, 143)])
def test_the_exit_that_a_signal_asks_for_is_not_swallowed(run: monitor.Run, handler: Any) -> None:
    """A SIGTERM handler that leaves the program leaves it, wherever the signal met it."""
    before = signal.signal(signal.SIGTERM, handler)
    try:
        with pytest.raises(SystemExit, match="143"):
            run.log(metric=Signalled(signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, before)


def test_ctrl_c_is_not_swallowed(run: monitor.Run) -> None:
    """Ctrl-C that comes while a value is read ends the program as ever."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run.log(metric=Signalled(signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, before)
