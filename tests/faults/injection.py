"""Finding every function of ours that runs while a model trains, and making one of them raise."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

import pytest


class InjectedError(Exception):
    """What a test makes a function of ours raise."""


class Fault:
    """One function of ours that raises once it is armed."""

    def __init__(self, owner: Any, name: str) -> None:
        self.owner, self.name = owner, name
        home = owner.__name__ if isinstance(owner, ModuleType) else f"{owner.__module__}.{owner.__qualname__}"
        self.label = f"{home}.{name}"
        self.is_armed = False
        self.num_hits = 0

    @property
    def function(self) -> Any:
        found = vars(self.owner)[self.name]
        return found.fget if isinstance(found, property) else found

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put the function that raises in the place of the real one, for the time of a test."""
        function, is_property = self.function, isinstance(vars(self.owner)[self.name], property)

        def raising(*args: Any, **kwargs: Any) -> Any:
            if self.is_armed:
                self.num_hits += 1
                raise InjectedError(self.label)
            return function(*args, **kwargs)

        monkeypatch.setattr(self.owner, self.name, property(raising) if is_property else raising)


def faults_in(*packages: ModuleType) -> list[Fault]:
    """Return a fault for every function, method and property of the packages, and for the clock as they look it up."""
    return [
        Fault(owner, name)
        for package in packages
        for info in pkgutil.iter_modules(package.__path__)
        for owner, name in _functions(importlib.import_module(f"{package.__name__}.{info.name}"))
    ]


def _functions(module: ModuleType) -> Iterator[tuple[Any, str]]:
    for name, value in list(vars(module).items()):
        if name == "perf_counter" or (isinstance(value, FunctionType) and _is_ours(value)):
            yield module, name
        elif inspect.isclass(value) and value.__module__ == module.__name__ and not getattr(value, "_is_protocol", 0):
            for key, member in list(vars(value).items()):
                function = member.fget if isinstance(member, property) else member
                if isinstance(function, FunctionType) and _is_ours(function) and not key.startswith("__"):
                    yield value, key


def _is_ours(function: FunctionType) -> bool:
    return function.__module__.startswith("monitor.") and function.__code__.co_filename.endswith(".py")
