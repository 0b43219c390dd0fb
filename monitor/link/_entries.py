"""The entries of the step buffer: what one optimizer step, or one logged value, leaves for the recorder.

An entry is written as a plain tuple, since to make a named one costs the training thread a microsecond. It is packed
with :mod:`marshal` before it is kept: bytes are nothing that the cyclic garbage collector tracks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

Value = Any
"""A float; on the training thread perhaps one that is still on its way from a device; None: not known."""
Norms = list[Any] | tuple[Any, ...] | str
"""A norm by device; empty where none was due; a text says why it cannot be known. A tuple that begins with such a text
is a :class:`SpreadNorms`."""


class SpreadNorms(NamedTuple):
    """The norms of gradients of which this rank holds a part: of those that it holds whole, of its shards, every one
    weighted by one over the number of ranks that hold it too, and of its part of flattened parameters; each a list by
    device."""

    reason: str
    whole: Sequence[Any]
    shards: Sequence[Any]
    flat: Sequence[Any]


Pass = tuple[float, Any]
"""A backward pass: when it began (``perf_counter``), and the loss that was back-propagated (several: a tuple; None: it
cannot be known)."""
Span = tuple[float, float, float, int]
"""A span of the training thread: ``(mark, start, begin, what)``, times in ``perf_counter`` seconds.

``mark`` is when the thing before it had ended, the monitor's own work lasted from ``start`` to ``begin``, and from
``begin`` to the mark of the next span the thread did ``what``, a number of :class:`Kind`.
"""


class Kind:
    """What a thread did in a span. Plain integers: an enum's members cannot be packed."""

    STEP = 0
    """The optimizer made its step."""
    WAIT = 1
    """The thread waited for a batch."""
    BACKWARD = 2
    """Something was back-propagated."""
    OURS = 3
    """The monitor noted something that is kept elsewhere."""


class ClipNote(NamedTuple):
    """One call of a clipping function, as seen on the training thread.

    ``norms`` are L2 norms by device, taken before clipping and without a GradScaler's scale (None: of a gradient to
    which a later backward has added); ``measure`` is what the threshold was held against, in the unit that it was held
    against: the total norm of the call's own type, or the largest absolute gradient; ``param_ids`` says whose gradients
    were clipped, None for all of the optimizer's; ``start`` and ``end`` are when it was noted (``perf_counter``).
    """

    kind: Literal["norm", "value"]
    threshold: float
    norms: Norms | None
    measure: Norms
    param_ids: frozenset[int] | None = None
    start: float = 0.0
    end: float = 0.0


RawClip = tuple[Literal["norm", "value"], float, Norms | None, Norms, "frozenset[int] | None", float, float]
"""A :class:`ClipNote` as the training thread writes it."""


class Details(NamedTuple):
    """What the recorder asks for now and then, since it seldom changes: a list each, one item a param group."""

    names: Sequence[str | None]
    weight_decay: Sequence[float | None]
    momentum: Sequence[float | None]


class Opened(NamedTuple):
    """What was known when a step began: the spans until then, that of its own beginning (None for a
    step that was skipped), the backward passes that it applies, and the param groups."""

    spans: Sequence[Span]
    stepped: Span | None
    scheduled: Sequence[Any]
    applied: Sequence[Any] | None
    factors: Sequence[float] | None
    losses: Sequence[Pass]
    norms: Norms
    details: tuple[Any, ...] | None
    evaluation: object = None


class StepEntry(NamedTuple):
    """One optimizer step as the hooks saw it, its ``opened`` an :class:`Opened` as the training thread writes it. Times
    are ``perf_counter`` seconds: the last thing noted had ended at ``mark``, the step at ``done``. ``spans`` are those
    made during the step."""

    sequence: int
    optimizer: str
    number: int
    time: float
    spans: Sequence[Span]
    mark: float
    done: float
    clips: Sequence[RawClip]
    amp: tuple[Value, Value, Value] | None
    is_skipped: bool
    opened: tuple[Any, ...]


class SampleEntry(NamedTuple):
    """One value that the user logged, after step ``number`` of an optimizer."""

    sequence: int
    kind: str
    name: str
    time: float
    value: Value
    number: int
    optimizer: str = ""


TIME = 3
"""Where the time stands in an entry of either kind."""
NUM_SAMPLE_FIELDS = len(SampleEntry._fields)
RawEntry = tuple[Any, ...]
"""A :class:`StepEntry` or, by its length, a :class:`SampleEntry`."""
