from __future__ import annotations

import pytest

from tests.requirements import need


@pytest.fixture
def promtool() -> str:
    """Path of the real promtool; without it the test is skipped, except in CI."""
    return need("promtool", "prometheus")
