"""Outside parts that a test needs: skipped where they are missing, a failure in CI."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec

import pytest


def need_program(name: str, cure: str) -> str:
    """Return the path of a program, or skip."""
    path = shutil.which(name)
    return path if path is not None else _missing(f"{name} is not installed: {cure}")


def need_package(name: str, cure: str) -> None:
    """Skip where a package is not installed."""
    if find_spec(name) is None:
        _missing(f"{name} is not installed: {cure}")


def _missing(reason: str) -> str:
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
    return ""
