"""Text that cannot steer a terminal: the one rule for all that the command line prints and the log says."""

from __future__ import annotations

import logging


def one_line(value: object) -> str:
    r"""Return text for one line of a terminal. What is no visible character or blank is a question mark: escape
    sequences, line breaks, marks that turn the direction of writing, halves of characters.

    >>> one_line("loss\x1b[2J\n\u202e")
    'loss?[2J??'
    """
    return _shown(str(value), "")


def printable(text: str) -> str:
    r"""Return text as :func:`one_line` does, over as many lines as it has.

    >>> printable("first\r\nsecond\x1b[2J")
    'first\nsecond?[2J'
    """
    return _shown(text.replace("\r\n", "\n"), "\n\t")


def _shown(text: str, kept: str) -> str:
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() or character in kept else "?" for character in text)


class _Printable(logging.Filter):
    """Clean a record before any handler sees it; one that is clean stays as it is."""

    def filter(self, record: logging.LogRecord) -> bool:
        said = record.getMessage()
        if (clean := printable(said)) != said:
            record.msg, record.args = clean, ()
        if record.exc_info and not record.exc_text:
            trace = logging.Formatter().formatException(record.exc_info)
            if (clean := printable(trace)) != trace:
                record.exc_text = clean
        return True


_FILTER = _Printable()


def keep_printable(logger: logging.Logger) -> None:
    """Have every line of a logger cleaned, wherever it goes. Safe to repeat."""
    logger.addFilter(_FILTER)
