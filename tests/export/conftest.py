from __future__ import annotations

import os
import shutil

import pytest


@pytest.fixture
def promtool() -> str:
    """Path of the real promtool; without it the test is skipped, except in CI."""
    if path := shutil.which("promtool"):
        return path
    if os.environ.get("CI") == "true":
        pytest.fail("promtool is not installed; it comes with Debian's package prometheus")
    pytest.skip("promtool is not installed; it comes with Debian's package prometheus")
