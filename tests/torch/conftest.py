"""What the tests of this folder share with those of control."""

from tests.control.conftest import attach

__all__ = ["attach"]
