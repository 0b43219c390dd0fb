"""Have runs begin by themselves once torch is imported: what training-monitor.pth calls when Python starts with
``MONITOR`` set.

A module of its own, as the name ``monitor`` may be that of a file of the user's. It must not break any program: what
fails is one line on stderr.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing would take a third of the time that Python needs to start
    from collections.abc import Callable
    from typing import Any

_BEGUN: list[bool] = []


def begin() -> None:
    """Wait for torch, if ``MONITOR`` is 1, true, yes or on. A second call does nothing: Python may read a .pth file in
    several folders."""
    if not _BEGUN and _is_asked_for():
        _BEGUN.append(True)
        _contained(lambda: _on_import("torch", _begin_runs))


def lightning_callbacks() -> list[Any]:
    """Return what Lightning's entry point adds to each Trainer: the callback under ``MONITOR=1``, else nothing."""
    found: list[Any] = []

    def add() -> None:
        from monitor.integrations.lightning import MonitorCallback

        found.append(MonitorCallback())

    if _is_asked_for():
        _contained(add)
    return found


def _is_asked_for() -> bool:
    return os.environ.get("MONITOR", "").strip().lower() in ("1", "true", "yes", "on")


def _begin_runs() -> None:
    from importlib.util import find_spec

    spec = find_spec("monitor")
    homes = (spec and spec.submodule_search_locations) or ()
    if not any(os.path.isdir(os.path.join(home, "auto")) for home in homes):
        raise ImportError(f"`import monitor` finds {spec and spec.origin}, not the package; rename that file")
    from monitor.auto import begin

    begin()


def _on_import(name: str, then: Callable[[], None]) -> None:
    """Call a function once a module has been imported."""
    if name in sys.modules:
        then()
    else:
        sys.meta_path.insert(0, _Finder(name, then))


class _Finder:
    """Find one module as the finders after this one do, and call a function when it has been executed."""

    def __init__(self, name: str, then: Callable[[], None]) -> None:
        self._name, self._then = name, then

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Return the spec of the module; None, so that the finders after this one are asked, for every other."""
        found: list[Any] = [None]
        if name == self._name:
            _contained(lambda: found.append(self._find(path, target)))
        return found[-1]

    def _find(self, path: Any, target: Any) -> Any:
        after = sys.meta_path[sys.meta_path.index(self) + 1 :]
        specs = (finder.find_spec(self._name, path, target) for finder in after)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None:
            self._follow(spec.loader)
        return spec

    def _follow(self, loader: Any) -> None:
        execute = loader.exec_module

        def exec_module(module: Any) -> None:
            vars(loader).pop("exec_module", None)
            execute(module)
            if module.__name__ == self._name:
                _contained(self._leave)

        loader.exec_module = exec_module

    def _leave(self) -> None:
        if self in sys.meta_path:  # else a second import, after the module was taken out of sys.modules
            sys.meta_path.remove(self)
            self._then()


def _contained(function: Callable[[], None]) -> None:
    try:
        function()
    except Exception as error:  # noqa: BLE001 - whatever it is, the program is to run as without us
        try:
            sys.stderr.write(f"monitor: MONITOR=1 has no effect in process {os.getpid()}: {error}\n")
        except Exception:  # noqa: BLE001 - there is no stderr, or nobody reads it
            pass
