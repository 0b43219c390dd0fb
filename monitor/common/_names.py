"""What a user's own names are called in metrics, curves and lines: printable, of bounded length, and still distinct."""

from __future__ import annotations

import zlib
from typing import Any

MAX_NAME = 256
"""Characters that a name may have; a longer one is cut, see ``as_name``."""
_MARK = "…"


def as_name(key: Any) -> str:
    r"""Return what a value is called: printable text of 256 characters at most.

    A longer name ends in an ellipsis and a checksum of the whole, so that two that begin alike stay two. What is not
    printable is escaped, so that no name breaks a line of the log or of the metrics. Raises whatever ``str`` raises.

    >>> as_name("accuracy"), as_name(3), as_name("two\nlines")
    ('accuracy', '3', 'two\\nlines')
    >>> as_name("x" * 300)[-12:]
    'xxx…1b432d13'
    """
    name = str.__str__(key if issubclass(type(key), str) else str(key))  # a str's own __str__ may be overridden
    if len(name) <= MAX_NAME and name.isprintable():
        return name
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name[:MAX_NAME])
    if len(name) <= MAX_NAME and len(shown) <= MAX_NAME:
        return shown
    mark = f"{_MARK}{zlib.crc32(name.encode('utf-8', 'surrogatepass')):08x}"
    return shown[: MAX_NAME - len(mark)] + mark


def is_shortened(name: str) -> bool:
    """Tell whether ``as_name`` has cut this name.

    >>> is_shortened(as_name("x" * 300)), is_shortened("accuracy")
    (True, False)
    """
    return len(name) == MAX_NAME and name[-9] == _MARK
