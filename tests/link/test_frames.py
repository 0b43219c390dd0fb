"""Frames travel whole or not at all; the ends of a pipe close once, from wherever."""

from __future__ import annotations

import marshal
import os
import pickle
import re
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import monitor.link._messages
from monitor.link import ENTRIES, Pipe, pack_entries, pack_message, unpack_entries, unpack_message
from monitor.link._forms import FORMS
from monitor.link._frames import MAX_FRAME_BYTES, MESSAGE


@pytest.fixture
def pipe() -> Iterator[tuple[Pipe, Pipe]]:
    read, write = os.pipe()
    ends = Pipe(write), Pipe(read)
    yield ends
    for end in ends:
        end.close()


def test_what_is_written_is_read(pipe: tuple[Pipe, Pipe]) -> None:
    """Entries and messages arrive in their order and as they were."""
    to, back = pipe
    to.write(pack_entries([b"one", b"two"]))
    to.write(pack_message("ask", (1, "snapshot", ())))
    kind, payload = back.read() or (0, b"")
    assert (kind, unpack_entries(payload)) == (ENTRIES, [b"one", b"two"])
    kind, payload = back.read() or (0, b"")
    assert (kind, unpack_message(payload)) == (MESSAGE, ("ask", (1, "snapshot", ())))


def test_a_frame_larger_than_the_pipe_arrives_whole(pipe: tuple[Pipe, Pipe]) -> None:
    """The writer waits for the reader; nothing is cut."""
    to, back = pipe
    frame = pack_entries([bytes(3_000_000)])
    writer = threading.Thread(target=to.write, args=(frame,))
    writer.start()
    found = back.read()
    writer.join()
    assert found is not None
    assert unpack_entries(found[1]) == [bytes(3_000_000)]


@pytest.mark.parametrize("length", [0, 3, 5, 8])
def test_an_end_in_the_middle_of_a_frame_is_an_end(pipe: tuple[Pipe, Pipe], length: int) -> None:
    """A process that is killed while it writes leaves half a frame: no message is made of it."""
    to, back = pipe
    os.write(to._descriptor, pack_entries([b"one"])[:length])
    to.close()
    assert back.read() is None


def test_a_length_that_cannot_be_is_an_end(pipe: tuple[Pipe, Pipe]) -> None:
    """Nothing of that size is waited for, or kept room for."""
    to, back = pipe
    os.write(to._descriptor, struct.pack("<BI", MESSAGE, MAX_FRAME_BYTES + 1))
    assert back.read() is None


def test_a_closed_end_refuses(pipe: tuple[Pipe, Pipe]) -> None:
    """Writing into a link that was closed on either side is an OSError; reading from one is its end."""
    to, back = pipe
    back.close()
    back.close()
    assert back.read() is None
    with pytest.raises(OSError, match="Broken pipe"):
        to.write(pack_entries([b"one"]))
    to.close()
    with pytest.raises(OSError, match="the link is closed"):
        to.write(pack_entries([b"one"]))


def test_what_cannot_be_pickled_is_the_callers() -> None:
    """The error is raised where the frame is made, before anything is written."""
    unpicklable: Any = threading.Lock()
    with pytest.raises(TypeError):
        pack_message("event", unpicklable)


def test_every_message_has_a_form() -> None:
    """The messages that are described are those whose form is checked."""
    assert set(re.findall(r"^\| ``(\w+)`` \|", monitor.link._messages.__doc__ or "", re.M)) == set(FORMS)


@pytest.mark.parametrize(
    "message", [("near", "yes"), ("answer", (1,)), ("unknown", None), ("log", 3), 3, None, ("a", 1, 2)]
)
def test_a_message_of_another_form_is_refused(message: Any) -> None:
    """Before anything is done with it."""
    with pytest.raises(ValueError, match="not a message of the link, or its content has another form"):
        unpack_message(pickle.dumps(message))


@pytest.mark.parametrize("entries", [None, 3, [1], (b"one",), {"a": b"one"}])
def test_a_frame_of_entries_holds_a_list_of_bytes(entries: Any) -> None:
    with pytest.raises(ValueError, match="not a list of bytes"):
        unpack_entries(marshal.dumps(entries))
