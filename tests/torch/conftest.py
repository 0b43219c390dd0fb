"""The fixtures of these tests."""

from tests.control.conftest import attach

__all__ = ["attach"]
