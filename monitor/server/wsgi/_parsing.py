"""The form of a request, read as RFC 9112 has it: what two parsers may understand in two ways is refused."""

from __future__ import annotations

import re
from typing import Any

from cheroot.server import HeaderReader, comma_separated_headers  # type: ignore[attr-defined]

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
# A name is a token with the colon right behind it, and a line is one line: no fold, no bare CR or LF, no NUL.
_HEADER = re.compile(rb"(" + _TOKEN + rb"):([^\0\r\n]*)\r\n")
_REQUEST_LINE = re.compile(_TOKEN + rb" [\x21-\x7e]+ HTTP/[0-9]\.[0-9]\r\n")
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,16}[ \t]*(;[^\0\r\n]*)?\r\n")


class Headers(dict[bytes, bytes]):
    """The headers of a request: what may come once comes once, and X_Forged is not X-Forged."""

    _SINGLE = frozenset(
        [b"Host", b"Content-Length", b"Content-Type", b"Authorization", b"Idempotency-Key", b"X-Csrf-Token"]
    )

    def __setitem__(self, name: bytes, value: bytes) -> None:
        if b"_" in name:
            return
        if name in self._SINGLE and name in self:
            raise ValueError(f"The header {name.decode('latin-1')} is given more than once.")
        super().__setitem__(name, value)


class StrictHeaderReader(HeaderReader):
    """Read the lines of a head. cheroot's own takes blanks before the colon, folded lines and control characters."""

    def __call__(self, rfile: Any, hdict: dict[bytes, bytes] | None = None) -> dict[bytes, bytes]:
        """Return ``hdict`` with the headers put into it. Raises ValueError for a line that is none."""
        headers = {} if hdict is None else hdict
        while (line := rfile.readline()) != b"\r\n":
            found = _HEADER.fullmatch(line)
            if found is None:
                raise ValueError("A line of the head is not a header: NAME: VALUE, ended by CR and LF.")
            name, value = found[1].title(), found[2].strip(b" \t")
            if name in comma_separated_headers and headers.get(name):
                value = headers[name] + b", " + value
            headers[name] = value
        return headers


def check_request_line(line: bytes) -> None:
    """Raise ValueError for a line that does not begin a request: cheroot takes any bytes for a method or an address,
    blanks around the line, and what ``int`` takes for a version."""
    if line and not _REQUEST_LINE.fullmatch(line):
        raise ValueError("The request line must be METHOD ADDRESS HTTP/1.1, with single blanks, ended by CR and LF.")


def check_chunk_size(line: bytes) -> None:
    """Raise ValueError for a line that is not the size of a chunk: cheroot takes what ``int`` does, ``0xe`` and all."""
    if not _CHUNK_SIZE.fullmatch(line):
        raise ValueError("The size of a chunk must be hexadecimal digits, ended by CR and LF.")
