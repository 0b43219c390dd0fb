"""The messages of the link.

| to the watcher | content |
| --- | --- |
| ``hello`` | a :class:`Hello`: the first message |
| ``state`` | a :class:`TrainingState`: what has changed in the training process |
| ``event`` | an event of the training process, to be numbered and recorded |
| ``run_state`` | the state of the run: running, paused |
| ``command`` | a command that was accepted, or its outcome |
| ``submitted`` | number of a request, and the record of its command or the refusal |
| ``book`` | totals, times and records of the commands so far, for a watcher that takes over |
| ``ask`` | number of a question, what is asked, arguments |
| ``ranks`` | number of ranks and own rank, where ``attach`` came before the process group |
| ``target`` | number of planned steps, where the run has come to know it |
| ``join`` | where rank 0's watcher takes shares, and own rank |
| ``end`` | state and time of the end, and the text of the exception |
| ``leave`` | nothing follows |

| to the training process | content |
| --- | --- |
| ``ready`` | the address, or None, and whether there is a run folder |
| ``log`` | level and text of a line for the program's log |
| ``digested`` | steps (if somebody wants them) and events, in order |
| ``submit`` | number of a request, action, fields, and until when it may be taken (``time.monotonic``) |
| ``skipped`` | number of steps by optimizer that have turned out to be skipped |
| ``pace`` | median step time and last loss, where other ranks train along |
| ``near`` | whether a stall comes soon if nothing excuses it |
| ``stall`` | nothing: a stall begins, and an event is to say where the training threads stand |
| ``memory`` | number of the last entry and of the last message that are recorded, and all that has been learnt |
| ``answer`` | number of a question, answer or exception |
| ``final`` | the last snapshot, the curves and the events: nothing follows |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from monitor._records import RankReading, RunInfo
from monitor._settings import Settings
from monitor.link._in_force import InForce

VERSION = 1
"""Both processes run the same files; a package that is exchanged under a live run has another version."""

RECORDED = frozenset({"event", "run_state", "command", "end"})
"""Messages that both ends number: those after a watcher's last memory are sent again to the next one."""


@dataclass(frozen=True)
class Hello:
    """What a watcher must know of its run.

    ``detectors``: for the first optimizer, None: the default ones. ``is_continued``: an earlier watcher of this run has
    ended, and ``memory`` is what it had learnt before entry ``first_sequence`` and from the first ``num_messages``
    messages that are recorded. ``thread`` is the system's number of the thread that writes the link, ``command`` what a
    terminal has to type for the command line. ``num_ranks``, ``rank`` and ``local_rank`` are also known where only a
    launcher has announced them; ``listener`` is the descriptor of the socket at which rank 0 takes the shares of the
    others, ``secret`` what proves that they are of this run, and ``place`` is where another rank's watcher sends its
    own, once that is known.
    """

    settings: Settings
    info: RunInfo
    token: str
    optimizers: Mapping[str, str]
    script: str = ""
    command: str = "monitor"
    environment: Mapping[str, str] = field(default_factory=dict)
    detectors: tuple[Any, ...] | None = None
    asks_for_gpu: bool = False
    wants_steps: bool = False
    is_continued: bool = False
    first_sequence: int = 1
    memory: bytes = b""
    num_messages: int = 0
    base_step: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    thread: int = 0
    num_ranks: int = 1
    rank: int = 0
    local_rank: int | None = None
    listener: int | None = None
    secret: str = field(default="", repr=False)
    place: Mapping[str, Any] | None = field(default=None, repr=False)
    version: int = VERSION


@dataclass(frozen=True)
class TrainingState:
    """What the training process knows about itself. ``activity`` is when the training thread was last seen to do
    something (``perf_counter``); ``devices`` are the UUIDs of torch's devices, None while CUDA is not initialised;
    ``guesses`` the loss of a model that only guesses, by optimizer, where that is known; ``ranks`` how far each rank
    is, known to rank 0 alone."""

    activity: float = 0.0
    is_busy: bool = False
    is_paused: bool = False
    in_force: InForce = field(default_factory=dict)
    failures: Mapping[str, int] = field(default_factory=dict)
    devices: tuple[str, ...] | None = ()
    allocator: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    guesses: Mapping[str, float] = field(default_factory=dict)
    are_several: bool = False
    ranks: tuple[RankReading, ...] = ()
