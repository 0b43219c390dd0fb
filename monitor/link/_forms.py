"""The forms of the messages: what passes between the two processes is looked at before anything is done with it.

A message whose kind or content is another's is an error where it is unpacked, counted there, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Real
from types import NoneType
from typing import Any

from monitor._records import STATES, CommandRecord, Event, Snapshot, Step
from monitor.link._messages import Hello, TrainingState

Form = Callable[[Any], bool]


def _of(*kinds: type) -> Form:
    return lambda found: isinstance(found, kinds)


def _row(*forms: Form) -> Form:
    """A tuple with so many parts."""
    return lambda found: (
        isinstance(found, tuple)
        and len(found) == len(forms)
        and all(fits(part) for fits, part in zip(forms, found, strict=True))
    )


def _each(form: Form) -> Form:
    return lambda found: isinstance(found, list | tuple) and all(map(form, found))


def _mapping(form: Form, **named: Form) -> Form:
    """A mapping from texts; those that are ``named`` have a form of their own."""
    return lambda found: (
        isinstance(found, Mapping)
        and all(isinstance(key, str) and named.get(key, form)(value) for key, value in found.items())
    )


_WHOLE, _NUMBER, _TEXT, _FLAG, _NOTHING = _of(int), _of(Real), _of(str), _of(bool), _of(NoneType)
_ANYTHING = _of(object)
_MAYBE_NUMBER = _of(Real, NoneType)
_EVENTS, _RECORD, _OBJECT = _each(_of(Event)), _of(CommandRecord), _mapping(_ANYTHING)


def _is_state(found: Any) -> bool:
    return isinstance(found, str) and found in STATES


def _is_address(found: Any) -> bool:
    return found is None or (isinstance(found, str) and found.rpartition(":")[2].isdecimal())


FORMS: Mapping[str, Form] = {
    # to the watcher
    "hello": _of(Hello),
    "state": _of(TrainingState),
    "event": _of(Event),
    "run_state": _is_state,
    "command": _RECORD,
    "submitted": _row(_WHOLE, _of(CommandRecord, Exception)),
    "book": _row(_of(Mapping), _mapping(_NUMBER), _each(_RECORD)),
    "ask": _row(_WHOLE, _TEXT, _of(tuple)),
    "ranks": _row(_WHOLE, _WHOLE),
    "target": _WHOLE,
    "join": _row(_OBJECT, _WHOLE),
    "end": _row(_is_state, _NUMBER, _TEXT),
    "leave": _NOTHING,
    # to the training process
    "ready": _row(_is_address, _FLAG),
    "log": _row(_WHOLE, _TEXT),
    "digested": _each(_of(Step, Event)),
    "submit": _row(_WHOLE, _TEXT, _OBJECT, _NUMBER),
    "skipped": _mapping(_WHOLE),
    "pace": _row(_MAYBE_NUMBER, _MAYBE_NUMBER),
    "near": _FLAG,
    "stall": _NOTHING,
    "memory": _row(_WHOLE, _WHOLE, _of(bytes)),
    "answer": _row(_WHOLE, _ANYTHING),
    "final": _mapping(_ANYTHING, snapshot=_of(Snapshot), history=_OBJECT, events=_EVENTS, state_dict=_OBJECT),
}


def checked(message: Any) -> tuple[str, Any]:
    """Return a message, kind and content, that has the form of its kind.

    Raises:
        ValueError: it has not.

    >>> checked(("near", True))
    ('near', True)
    >>> checked(("near", "yes"))
    Traceback (most recent call last):
    ValueError: not a message of the link, or its content has another form: ('near', 'yes')
    """
    if isinstance(message, tuple) and len(message) == 2:
        kind, content = message
        if isinstance(kind, str) and kind in FORMS and FORMS[kind](content):
            return kind, content
    raise ValueError(f"not a message of the link, or its content has another form: {message!r:.60}")
