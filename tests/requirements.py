"""What a test needs from the machine: without it the test is skipped with the reason, on a CI machine it fails."""

from __future__ import annotations

import importlib.util
import os
import shutil

import pytest


def need(program: str, package: str | None = None) -> str:
    """Return the path of ``program`` (of Debian's ``package``), or skip the test; fail it where ``$CI`` is true."""
    path = shutil.which(program)
    if path is None:
        _miss(f"needs {program} (Debian package {package or program}); `make test` installs it where it may")
    assert path is not None
    return path


def need_module(name: str) -> None:
    """Skip the test, or fail it where ``$CI`` is true, unless the Python module ``name`` is installed."""
    if importlib.util.find_spec(name) is None:
        _miss(f"needs the Python module {name}; the extra [all] brings it")


def need_root() -> None:
    """Skip the test unless this is root, who alone can become another user."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("needs root, to become another user; in a container one usually is")


def need_framework(name: str) -> None:
    """As :func:`need_module`, for all tests of the module that calls it."""
    if importlib.util.find_spec(name) is None:
        reason = f"needs the Python module {name}; the extra [all] brings it"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason, allow_module_level=True)


def _miss(reason: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
