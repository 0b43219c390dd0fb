"""Playwright's ``expect`` with the patience that a busy machine needs, importable where playwright is not installed."""

from __future__ import annotations

from typing import Any

try:
    from playwright.sync_api import expect
except ImportError:  # the fixture ``chromium`` then skips or fails every test, with the reason

    def expect(*_: Any) -> Any:
        raise AssertionError("no test gets here without playwright")
else:
    expect.set_options(timeout=60_000)

__all__ = ["expect"]
