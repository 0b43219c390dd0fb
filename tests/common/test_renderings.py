"""One rendering serves all who ask, and no longer than it is right."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from monitor.common import Renderings


class Page:
    """What is rendered, and how often."""

    def __init__(self) -> None:
        self.now = 0.0
        self.num_made = 0
        self.kept: Renderings[int] = Renderings(capacity=2, seconds=1.0, clock=lambda: self.now)

    def get(self, state: object, form: str = "text") -> int:
        return self.kept.get(state, form, self._render)

    def _render(self) -> int:
        self.num_made += 1
        return self.num_made


def test_an_equal_state_is_rendered_once() -> None:
    """Another state, or another form, is rendered anew."""
    page = Page()
    assert [page.get((1, "a")), page.get((1, "a")), page.get((2, "a")), page.get((2, "a"), "json")] == [1, 1, 2, 3]


def test_a_rendering_has_an_age() -> None:
    """It may hold readings of its own, such as the process's CPU time."""
    page = Page()
    page.get("state")
    page.now = 0.9
    assert page.get("state") == 1
    page.now = 1.0
    assert page.get("state") == 2


def test_forms_are_bounded() -> None:
    """Of one too many the one goes that nobody has asked for lately."""
    page = Page()
    made = [page.get("state", form) for form in ("a", "b", "a", "c", "a", "b")]
    assert made == [1, 2, 1, 3, 1, 4]


def test_who_asks_meanwhile_waits_for_the_one_rendering() -> None:
    """A flood costs one rendering, not one for each thread."""
    begun, go_on, kept = threading.Event(), threading.Event(), Renderings[object]()

    def slow() -> object:
        begun.set()
        assert go_on.wait(60)
        return object()

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(kept.get, "state", "text", slow) for _ in range(4)]
        assert begun.wait(60)
        go_on.set()
        assert len({id(one.result(60)) for one in asked}) == 1


def test_what_fails_is_not_kept() -> None:
    """The next one tries again."""
    kept = Renderings[int]()
    with pytest.raises(ZeroDivisionError):
        kept.get("state", "text", lambda: 1 // 0)
    assert kept.get("state", "text", lambda: 1) == 1
