"""How the program ends: the exception that nobody caught, or the status that ``sys.exit`` was given."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NoReturn


class ExitNote:
    """Note that the program asks to exit with an error status, as the interpreter's own exit no longer knows it.

    Args:
        progress: returns how far the training is: one that continues has caught the SystemExit.
    """

    def __init__(self, progress: Callable[[], int]) -> None:
        self._progress = progress
        self._at: int | None = None
        self._original: Any = None
        self._own: Any = None

    def install(self) -> None:
        """Put the note in; a second call does nothing."""
        if self._own is None:
            self._original, self._own = sys.exit, self._exit
            sys.exit = self._own

    def remove(self) -> None:
        """Put ``sys.exit`` back, unless somebody has put in another one since."""
        if self._own is not None and sys.exit is self._own:
            sys.exit = self._original
        self._own = None

    @property
    def is_asked(self) -> bool:
        """Tell whether the program has asked to exit with an error status, and no step was made since."""
        return self._at is not None and self._at == self._progress()

    def cause(self) -> tuple[type[BaseException] | None, BaseException | None]:
        """Return kind and exception of an end in disorder that has begun; None and None: there is none."""
        kind: type[BaseException] | None = getattr(sys, "last_type", None)
        if kind is not None:
            return kind, getattr(sys, "last_value", None)
        return (SystemExit if self.is_asked else None), None

    def _exit(self, status: Any = None, /) -> NoReturn:
        is_good = status is None or (isinstance(status, int) and status == 0)  # anything else may not be compared
        self._at = None if is_good else self._progress()
        self._original(status)
        raise AssertionError  # sys.exit does not return
