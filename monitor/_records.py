"""Records that travel between the packages: frozen, without behaviour.

Times are Unix seconds, durations seconds, sizes bytes, ratios 0 to 1.
``None`` is "not known" or "not offered"; NaN is NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

State = Literal["starting", "running", "paused", "finished", "failed", "interrupted", "vanished"]
LIVE_STATES: tuple[State, ...] = ("starting", "running", "paused")
ENDED_STATES: tuple[State, ...] = ("finished", "failed", "interrupted")
"""The states in which a run can be closed."""
OVER_STATES: tuple[State, ...] = (*ENDED_STATES, "vanished")
"""The states of a run that is over: closed, or its process is gone."""
STATES: tuple[State, ...] = (*LIVE_STATES, *OVER_STATES)
PHASES = ("data", "forward", "backward", "optimizer", "monitor", "other")
DETECTOR_KINDS = (
    "nonfinite",
    "divergence",
    "spike",
    "plateau",
    "overfit",
    "gradient_explosion",
    "gradient_vanishing",
    "clipping_saturated",
    "stuck",
    "stall",
    "slowdown",
    "outlier",
    "nonfinite_metric",
)
EVENT_KINDS = (*DETECTOR_KINDS, "capture", "rank_lost", "straggler")
"""The kinds of trouble that are counted and shown while they last: what the detectors find; ``capture``, which says
that the monitor itself cannot see something; ``rank_lost``, one event for each rank that is lost; ``straggler``, a
rank that the others wait for."""
RANK_KINDS = ("rank_lost", "straggler")
"""Those that only several ranks can have."""
STALLED = "stalled"
"""What ``details["state"]`` is in an event of kind ``state`` that says where the training stands in a stall; ``stacks``
in the same details has the Python stacks."""
ACTIONS = ("reduce", "set", "restore", "undo", "pause", "resume", "stop", "checkpoint")
COMMAND_ROUTES: Mapping[str, tuple[str, str]] = {
    "set": ("PUT", "/lr"),
    "reduce": ("POST", "/lr/reduce"),
    "restore": ("POST", "/lr/restore"),
    "undo": ("POST", "/lr/undo"),
    "pause": ("POST", "/pause"),
    "resume": ("POST", "/resume"),
    "stop": ("POST", "/stop"),
    "checkpoint": ("POST", "/checkpoint"),
}
"""Method and path, below API_PREFIX, of each action in the HTTP API."""
API_PREFIX = "/api/v1"
MAX_REASON = 500
"""Characters that the reason of a command may have."""
MAX_MESSAGE = 1000
"""Characters that are kept of what became of a command: what a checkpoint function returns may be of any length."""
MAX_STEPS = 10**9
"""Steps over which a factor may be reached."""
MAX_GROUPS = 64
"""Param groups of an optimizer whose LR is kept over the course of a run."""
MAX_NAMES = 64
"""Names of logged values that are shown."""
MAX_RANKS = 64
"""Ranks that have series of their own."""
MAX_COMMANDS_KEPT = 1024
"""Commands that can be asked for by id."""
FACTOR_KEY = "monitor_lr_factor"
"""Key of a param group under which a saved state holds a factor other than 1."""
SOURCES = ("api", "alertmanager", "policy", "code")
OUTCOMES = ("applied", "rejected", "expired")
Component = Literal[
    "probe",
    "step_buffer",
    "recorder",
    "link",
    "detect",
    "control",
    "policy",
    "on_event",
    "on_checkpoint",
    "log",
    "folder",
    "store",
    "system",
    "export",
    "server",
]
COMPONENTS: tuple[Component, ...] = get_args(Component)
"""Whose failures are counted apart: each part of the monitor, and the user's own functions that it calls."""


@dataclass(frozen=True, slots=True)
class ParamGroup:
    """One param group as the last update used it: ``applied == factor * scheduled``. Both include what the optimizer
    itself multiplies its LR by (docs/control.md); None if the LR that it used is not known."""

    index: int
    name: str | None
    scheduled: float | None
    applied: float | None
    factor: float = 1.0
    weight_decay: float | None = None
    momentum: float | None = None


@dataclass(frozen=True, slots=True)
class Clip:
    """One evaluation of gradient clipping. ``factor`` is what the gradients were multiplied by (None for value
    clipping); ``is_clipped`` and ``factor`` are None where the gradients could not be measured."""

    kind: Literal["norm", "value"]
    threshold: float
    is_clipped: bool | None
    factor: float | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step, in plain numbers. ``number`` counts this session's steps of this optimizer from 1.

    ``time`` is that of the run's own clock: Unix time when the run began, monotonic from then on.
    ``gradient_norm_reason`` says why the norm of its gradients cannot be known. ``norm_parts`` are, where they are
    spread over ranks, the norm of those that are not, that of this rank's shards, each weighted by one over the number
    of ranks that hold it too, and that of its part of flattened parameters.
    """

    optimizer: str
    number: int
    global_step: int
    time: float
    duration: float | None
    loss: float | None
    gradient_norm: float | None
    groups: tuple[ParamGroup, ...] = ()
    clips: tuple[Clip, ...] = ()
    amp_scale: float | None = None
    is_skipped: bool = False
    phases: Mapping[str, float] = field(default_factory=dict)
    hook_seconds: float = 0.0
    gradient_norm_reason: str | None = None
    norm_parts: tuple[float, float, float] | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One value that the user logged: ``kind`` loss, val_loss, samples, tokens or metric; ``name`` the dataset or
    metric; ``time`` is as in :class:`Step`."""

    kind: Literal["loss", "val_loss", "samples", "tokens", "metric"]
    name: str
    value: float
    step: int
    time: float


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened. An event that ends is published again under the same ``id`` with ``end_step`` and a
    new ``seq``.

    ``kind`` is one of EVENT_KINDS, or ``control`` (an audit entry), ``state`` (run started, paused, ended; where it
    stands in a stall), ``internal`` (a failure of our own, contained). ``start_step`` is the onset, ``step`` where it
    was raised.
    """

    kind: str
    severity: Literal["critical", "warning", "info"]
    step: int
    start_step: int
    message: str
    optimizer: str | None = None
    value: float | None = None
    end_step: int | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    time: float = 0.0
    id: int = 0
    seq: int = 0


@dataclass(frozen=True, slots=True)
class GroupChange:
    """What a command did to one param group. LRs are the applied ones; None for one that could not be read without
    waiting for a device."""

    optimizer: str
    param_group: int
    name: str | None
    factor_before: float
    factor_after: float
    lr_before: float | None
    lr_after: float | None


@dataclass(frozen=True, slots=True)
class CommandRecord:
    """A command and, once it has one, its outcome. ``step`` is the first optimizer step that used the new state."""

    id: str
    action: str
    source: str
    created: float
    factor: float | None = None
    groups: tuple[int | str, ...] | None = None
    over_steps: int = 0
    actor: str = ""
    reason: str = ""
    status: Literal["pending", "applied", "rejected", "expired"] = "pending"
    step: int | None = None
    finished: float | None = None
    message: str = ""
    changes: tuple[GroupChange, ...] = ()


@dataclass(frozen=True, slots=True)
class Histogram:
    """Upper bounds, counts per bucket (not cumulative; the last one is +Inf), and the sum of what was observed."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float


@dataclass(frozen=True, slots=True)
class HostReading:
    """The machine and the process tree of the trainer."""

    cpu_utilization_ratio: float | None = None
    memory_used_bytes: float | None = None
    memory_total_bytes: float | None = None
    tree_resident_bytes: float | None = None
    tree_cpu_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One GPU. ``index`` is the torch device index; every field that the card does not offer is None."""

    index: int
    uuid: str
    model: str
    driver_version: str
    utilization_ratio: float | None = None
    memory_activity_ratio: float | None = None
    memory_used_bytes: float | None = None
    memory_total_bytes: float | None = None
    process_memory_bytes: float | None = None
    temperature_celsius: float | None = None
    power_watts: float | None = None
    power_limit_watts: float | None = None
    sm_clock_hertz: float | None = None
    energy_joules: float | None = None
    throttle_reasons: Mapping[str, bool] | None = None
    ecc_errors: Mapping[str, float] | None = None
    cuda_allocated_bytes: float | None = None
    cuda_reserved_bytes: float | None = None
    cuda_allocation_retries: float | None = None
    cuda_out_of_memory: float | None = None


@dataclass(frozen=True, slots=True)
class Collection:
    """How the last round of one collector (training, gpu, host) went."""

    duration_seconds: float
    is_success: bool
    message: str = ""


@dataclass(frozen=True, slots=True)
class SystemReading:
    """One round of the system sampler, made at ``time``; ``counter`` is the same moment on a monotonic clock.
    ``collections`` says for ``gpu`` and ``host`` how the round went."""

    time: float
    host: HostReading | None = None
    gpus: tuple[GpuReading, ...] = ()
    collections: Mapping[str, Collection] = field(default_factory=dict)
    counter: float = 0.0


RankState = Literal["ok", "behind", "lost", "ended", "not_attached"]
RANK_STATES: tuple[RankState, ...] = get_args(RankState)


@dataclass(frozen=True, slots=True)
class RankReading:
    """What rank 0 knows of one rank. ``step_time`` is the median of the last second with steps, ``loss`` the rank's own
    share, ``last_seen_seconds`` the age of its last word by rank 0's clock, ``own_time`` what a step takes it apart
    from the backward pass, over the last seconds; ``url`` where other hosts reach its watcher, if that has the readings
    of its host."""

    rank: int
    state: RankState = "not_attached"
    run_id: str = ""
    host: str = ""
    step: int | None = None
    step_time: float | None = None
    loss: float | None = None
    last_seen_seconds: float | None = None
    own_time: float | None = None
    url: str = ""


@dataclass(frozen=True, slots=True)
class RunInfo:
    """Identity of a run: constant while it lives. ``start_time`` is that of its first session; ``resume_time`` is when
    the present one continued it, None in the first. ``leader`` is the id of rank 0's run, once the steps of this rank
    are part of it; empty for that run itself."""

    run_id: str
    name: str
    start_time: float
    monitor_version: str = ""
    torch_version: str = ""
    device: str = ""
    hostname: str = ""
    world_size: int = 1
    rank: int = 0
    git_commit: str = ""
    pid: int = 0
    resume_time: float | None = None
    leader: str = ""


@dataclass(frozen=True, slots=True)
class OptimizerSnapshot:
    """Everything known about one optimizer. Loss fields may be NaN in ``loss`` alone; the windows hold finite
    losses. ``gradient_norm_reason`` says why there is no ``gradient_norm``."""

    key: str
    class_name: str
    steps: int = 0
    global_step: int = 0
    groups: tuple[ParamGroup, ...] = ()
    loss: float | None = None
    loss_ema: float | None = None
    loss_window_mean: float | None = None
    loss_window_min: float | None = None
    loss_window_max: float | None = None
    loss_window_stddev: float | None = None
    loss_best: float | None = None
    loss_best_step: int | None = None
    loss_positive_sum: float = 0.0
    loss_positive_count: int = 0
    loss_negative_sum: float = 0.0
    loss_negative_count: int = 0
    gradient_norm: float | None = None
    gradient_norm_step: int | None = None
    gradient_norm_reason: str | None = None
    gradient_norm_window_max: float | None = None
    gradient_norm_window_median: float | None = None
    gradient_norm_histogram: Histogram | None = None
    clip_threshold: float | None = None
    clip_factor: float | None = None
    clip_checks: Mapping[str, int] = field(default_factory=lambda: {"norm": 0, "value": 0})
    clips: Mapping[str, int] = field(default_factory=lambda: {"norm": 0, "value": 0})
    clip_share: float | None = None
    amp_scale: float | None = None
    skipped_steps: Mapping[str, int] = field(default_factory=lambda: {"amp_overflow": 0})
    nonfinite: Mapping[str, int] = field(default_factory=lambda: {"loss": 0, "gradient": 0})


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole state of a run at one moment. Published by one writer; readers share it freely. ``elapsed_seconds`` is
    the time since the run began, up to its end. ``ranks`` is empty but in rank 0's run of several ranks; there
    ``summed_ranks`` is how many ranks' shares are in the losses and norms, and ``incomplete_steps`` counts the steps
    that lack a share."""

    run: RunInfo
    state: State
    time: float
    elapsed_seconds: float = 0.0
    end_time: float | None = None
    stall_timeout: float = 600.0
    target_steps: int | None = None
    last_step_time: float | None = None
    optimizers: tuple[OptimizerSnapshot, ...] = ()
    samples_total: float | None = None
    tokens_total: float | None = None
    steps_per_second: float | None = None
    samples_per_second: float | None = None
    tokens_per_second: float | None = None
    eta_seconds: float | None = None
    validation_losses: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    step_duration: Histogram | None = None
    phase_seconds: Mapping[str, float] = field(default_factory=dict)
    events_total: Mapping[str, int] = field(default_factory=dict)
    events_active: Mapping[str, bool] = field(default_factory=dict)
    last_event_time: Mapping[str, float] = field(default_factory=dict)
    last_event_step: Mapping[str, int] = field(default_factory=dict)
    last_event_seq: int = 0
    commands_total: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    commands_last_applied: Mapping[str, float] = field(default_factory=dict)
    commands_pending: int = 0
    hook_seconds: float = 0.0
    overhead_ratio: float | None = None
    errors: Mapping[str, int] = field(default_factory=dict)
    dropped_steps: int = 0
    dropped_series: int = 0
    host: HostReading | None = None
    gpus: tuple[GpuReading, ...] = ()
    collections: Mapping[str, Collection] = field(default_factory=dict)
    ranks: tuple[RankReading, ...] = ()
    summed_ranks: int = 1
    incomplete_steps: int = 0


def no_curves(since: int) -> dict[str, Any]:
    """Return the answer of ``GET /api/v1/history`` where there are no curves."""
    return {"since": since, "next": since, "resolution": 1, "optimizers": {}, "attempt": 0, "abandoned": {}}
