"""How hard the fuzzing tries: some seconds as part of the tests, ``$FUZZ_EFFORT`` times as long by ``make fuzz``.

At an effort of 1 the examples are the same in every run; above it they are others each time.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EFFORT = float(os.environ.get("FUZZ_EFFORT", "1"))


def tried(num_examples: int) -> settings:
    """Return the settings of a test that tries so many examples at an effort of 1."""
    return settings(
        max_examples=max(1, int(num_examples * EFFORT)),
        derandomize=EFFORT == 1,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([10**400, -(2**63), 2**64, "NaN", "1e999", "", "\x1b[2J\u202e", "\ud800"])
)
ANYTHING = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
"""Any value that JSON knows, the odd ones more often."""


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Draw what is left of ``whole`` after some of: bytes replaced, taken out, put in, doubled; the end cut off."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(content)))
        length = draw(st.integers(0, 12))
        piece = draw(st.binary(max_size=12) | st.just(bytes(content[at : at + length])) | st.sampled_from(ODD_BYTES))
        content[at : at + draw(st.integers(0, length))] = piece
    return bytes(content[: draw(st.integers(0, len(content)) | st.just(len(content)))])


ODD_BYTES = [
    b"\0",
    b"\r\n",
    b"\n",
    b"\r",
    b"\xff\xfe",
    b"[" * 2000,
    b"{",
    b'"',
    b"\xed\xa0\x80",
    b"9" * 5000,
    b"\x1b]0;",
]
