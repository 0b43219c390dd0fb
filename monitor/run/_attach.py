"""Attach a run to its optimizers; refuse what cannot be watched before anything is touched."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from typing import Any, NoReturn

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from monitor._records import Event
from monitor._settings import Settings, is_disabled, resolve, variable_of
from monitor.control import Policy, check_policies
from monitor.detect import Detector, DetectorSet
from monitor.run._engine import Engine
from monitor.run._log import make_visible
from monitor.run._notebook import current_cell, replace_earlier
from monitor.run._open_runs import enter, make_way, open_runs
from monitor.run._optimizers import named, unwrapped
from monitor.run._run import Run


def attach(
    optimizer: Any,
    scheduler: Any = None,
    *,
    detectors: Iterable[Detector] | None = None,
    policies: Iterable[Policy] = (),
    on_event: Callable[[Event], Any] | None = None,
    on_checkpoint: Callable[[], Any] | None = None,
    name: str | None = None,
    total_steps: int | None = None,
    host: str | None = None,
    port: int | None = None,
    token: str | None = None,
    read_token: str | None = None,
    alert_token: str | None = None,
    certfile: str | None = None,
    keyfile: str | None = None,
    client_cafile: str | None = None,
    protect_metrics: bool | None = None,
    hosts: Sequence[str] | None = None,
    serve: bool | None = None,
    directory: str | None = None,
    gradient_norm: str | int | None = None,
    overhead_budget: float | None = None,
    window: int | None = None,
    min_lr: float | None = None,
    allow_increase: bool | None = None,
    command_timeout: float | None = None,
    stop_raises: bool | None = None,
    gpu: bool | None = None,
    system_interval: float | None = None,
    stall_timeout: float | None = None,
    false_alarms_per_100k_steps: float | None = None,
    expected_initial_loss: float | None = None,
    store_bytes: int | None = None,
    keep_runs: int | None = None,
    keep_bytes: int | None = None,
    keep_days: float | None = None,
    resume: str | None = None,
    watcher: str | None = None,
    linger: float | None = None,
    wait_for_scrape: float | None = None,
    on_sigterm: str | None = None,
    digest_interval: float | None = None,
    **unknown: NoReturn,
) -> Run:
    """Watch a training run from here on: metrics, a live page, events, learning-rate control.

    Nothing else in the script changes; with no command given the weights are bit-identical to a run without the
    monitor. From ``name`` on, the arguments are the settings of docs/settings.md: each has an environment variable,
    which counts where the argument is None.

    Args:
        optimizer: a ``torch.optim.Optimizer``, a list of several, or a mapping of names to several. Those of a list go
            by their class, as ``Adam-0`` and ``Adam-1`` where two have one. Where one holds another that makes its
            steps (SAM, Lookahead, accelerate), that one is watched. The run keeps none alive.
        scheduler: its scheduler, several, a mapping, or None. Only checked against the optimizer: the LR is always
            read from the param groups at the moment of the update.
        detectors: what to look for; default: everything in docs/detection.md; ``()``: nothing;
            ``monitor.rl_detectors()`` where the loss is no sign of health. Copied for each optimizer.
        policies: what the run does by itself about its events, such as ``[monitor.ReduceLROn("divergence")]``;
            default: nothing.
        on_event: called with every :class:`monitor.Event`, in order, on a thread of the monitor's own.
        on_checkpoint: called without arguments at a step boundary when a checkpoint is asked for.
        name: Run name; default: the script's name, or its folder's for one such as train.py.
        total_steps: Planned steps, for progress and time left; of several optimizers those of the first, as run.step
            counts.
        host: Address to bind. Anything else than loopback is seen by others. Default: '127.0.0.1'.
        port: Port to bind; default: 9477 or the next free one.
        token: Control token; default: made, kept 0600 in the run folder.
        read_token: Token that may look but not change anything; default: made, kept likewise.
        alert_token: Token that may only hand in alerts, for Alertmanager; default: made, kept likewise.
        certfile: TLS certificate (PEM).
        keyfile: TLS private key (PEM).
        client_cafile: CA that client certificates must come from (PEM).
        protect_metrics: Ask for the token at /metrics and /healthz too. Default: False.
        hosts: Further Host headers to serve, such as a reverse proxy's; comma-separated in the environment. Default:
            ().
        serve: Serve HTTP at all. Default: True.
        directory: Folder of the run folders; default: $MONITOR_DIR, else the user's data folder.
        gradient_norm: "auto": at every step unless that would cost more than the budget; N: every N-th step; "off".
            Default: 'auto'.
        overhead_budget: Share of the step time that gradient_norm="auto" may use (ratio). Default: 0.01.
        window: Steps in the trailing windows. Default: 128.
        min_lr: Floor on the applied LR of a reduced param group. Default: 0.0.
        allow_increase: Accept LR factors above 1. Default: False.
        command_timeout: Seconds after which a command that no step has taken expires. Default: 600.0.
        stop_raises: A stop raises monitor.StopTraining at the next step boundary. Default: False.
        gpu: Read the GPUs through NVML. Default: True.
        system_interval: Seconds between host and GPU readings. Default: 2.0.
        stall_timeout: Seconds without a step after which a run counts as stalled, at most. Default: 600.0.
        false_alarms_per_100k_steps: Rate at which the noise of the run itself may raise a spike; measured truth:
            docs/detection.md. Default: 1.0.
        expected_initial_loss: Loss of a model that only guesses (ln of the number of classes), where the loss function
            does not tell it. Default: None.
        store_bytes: Size of the run store, in which curves, events and commands stay on disk; 0: none is kept.
            Default: 67108864.
        keep_runs: Run folders kept; at the start of a run the oldest that ended go. Default: 200.
        keep_bytes: Size of all run folders together; at the start of a run the oldest that ended go. Default:
            4294967296.
        keep_days: Days after their last session began that ended runs are kept; default: no limit.
        resume: Earlier run to continue: its id, or "auto": the newest of this name that was cut short, if the optimizer
            holds the state of a checkpoint.
        watcher: "process": records and serves in a process of its own; "thread": on threads of this one. Default:
            'process'.
        linger: Seconds that the watcher process stays after the end for one more scrape; delays no script. Default:
            60.0.
        wait_for_scrape: Seconds that the script itself waits at its end for one more scrape, if it was scraped.
            Default: 0.0.
        on_sigterm: "interrupt": SIGTERM ends the script in order, after the handler that was there.
        digest_interval: Seconds between two rounds of the recorder thread. Default: 0.25.

    Returns:
        The open :class:`monitor.Run`: a context manager, live at once. ``close()`` or the end of the process ends it
        too.

    Raises:
        TypeError, ValueError: for what cannot be watched or set, with the value and the cure.
        AlreadyAttachedError: if another open run watches the optimizer. In a notebook that run is ended instead, as is
            what the same cell has attached before, and a run none of whose optimizers is left.

    Example:
        >>> with monitor.attach(optimizer, scheduler):
        ...     train()
    """
    arguments = dict(locals())
    settings = {field.name: arguments[field.name] for field in fields(Settings)} | unknown
    if is_disabled():
        from monitor.run._disabled import DisabledRun

        return DisabledRun(_settings_of_disabled(settings))
    optimizers = named(optimizer)
    _check_schedulers(scheduler, optimizers)
    for function, argument in ((on_event, "on_event"), (on_checkpoint, "on_checkpoint")):
        if function is not None and not callable(function):
            raise TypeError(f"{argument} must be callable, got {function!r}")
    if detectors is not None:
        detectors = tuple(detectors)
        DetectorSet(detectors)  # refuses what is no detector, and two of a kind
    policies = check_policies(policies)
    _refuse_unknown(unknown)
    resolved = resolve(settings)
    if (begun := make_way()) is not None and resolved.resume is None:
        resolved = replace(resolved, resume=begun)
    cell = current_cell()
    replace_earlier(open_runs(), cell, optimizers.values())
    engine = begin(
        optimizers,
        resolved,
        cell=cell,
        detectors=detectors,
        policies=policies,
        on_event=on_event,
        on_checkpoint=on_checkpoint,
        asks_for_gpu=bool(gpu or os.environ.get(variable_of("gpu"))),
    )
    return Run(engine)


def begin(optimizers: Mapping[str, Optimizer], settings: Settings, **given: Any) -> Engine:
    """Open a run of these optimizers; ``given`` are the further arguments of :class:`Engine`.

    Raises:
        ValueError: as :meth:`Engine.open`.
        AlreadyAttachedError: if another open run watches one of the optimizers.
    """
    make_visible()
    engine = Engine(optimizers, settings, **given)
    enter(engine)
    return engine.open()


def _settings_of_disabled(settings: Mapping[str, Any]) -> Settings:
    """Return what would be in force, the defaults if that is invalid: nothing that is switched off is refused."""
    try:
        return resolve(settings)
    except (TypeError, ValueError):
        return Settings()


def _refuse_unknown(unknown: Iterable[str]) -> None:
    names = [field.name for field in fields(Settings)]
    for name in unknown:
        close = get_close_matches(name, names, 1)
        hint = f"did you mean {close[0]!r}?" if close else "docs/settings.md lists them"
        raise TypeError(f"attach has no setting {name!r}; {hint}")


def _check_schedulers(scheduler: Any, optimizers: Mapping[str, Optimizer]) -> None:
    for one in _flattened(scheduler):
        below = getattr(one, "optimizer", None)
        if below is None:
            if isinstance(one, LRScheduler) or hasattr(one, "step"):
                continue  # a schedule of another make: nothing to compare
            raise TypeError(f"scheduler must be an LR scheduler, several, a mapping or None, got {type(one).__name__}")
        if not any(unwrapped(below) is known for known in optimizers.values()):
            raise ValueError(
                f"{type(one).__name__} drives another optimizer ({type(below).__name__}) than the one attached "
                f"({', '.join(optimizers)}); attach that optimizer, or pass the scheduler made for this one"
            )


def _flattened(scheduler: Any) -> Iterable[Any]:
    if scheduler is None:
        return []
    if isinstance(scheduler, Mapping):
        return [s for one in scheduler.values() for s in _flattened(one)]
    if isinstance(scheduler, list | tuple):
        return [s for one in scheduler for s in _flattened(one)]
    return [scheduler]
