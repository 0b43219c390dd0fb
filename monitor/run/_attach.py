"""``attach``: refuses what cannot be watched, before anything is touched."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from monitor._records import Event
from monitor._settings import Settings, is_disabled, resolve, variable_of
from monitor.control import Policy, check_policies
from monitor.detect import Detector, DetectorSet
from monitor.run._engine import Engine
from monitor.run._log import make_visible
from monitor.run._open_runs import enter
from monitor.run._run import Run


def attach(
    optimizer: Any,
    scheduler: Any = None,
    *,
    detectors: Iterable[Detector] | None = None,
    policies: Iterable[Policy] = (),
    on_event: Callable[[Event], Any] | None = None,
    on_checkpoint: Callable[[], Any] | None = None,
    **settings: Any,
) -> Run:
    """Watch a training run from here on: metrics, a live page, events, learning-rate control.

    Nothing else in the script changes; with no command given the weights are bit-identical to a run without the
    monitor.

    Args:
        optimizer: a ``torch.optim.Optimizer``, a list of several, or a mapping of names to several. Where one holds
            another that makes its steps (SAM, Lookahead, accelerate), that one is watched. The run keeps none alive.
        scheduler: its scheduler, several, a mapping, or None. Only checked against the optimizer: the LR is always
            read from the param groups at the moment of the update.
        detectors: what to look for; default: everything in docs/detection.md; ``()``: nothing;
            ``monitor.rl_detectors()`` where the loss is no sign of health. Copied for each optimizer.
        policies: what the run does by itself about its events, such as ``[monitor.ReduceLROn("divergence")]``;
            default: nothing.
        on_event: called with every :class:`monitor.Event`, on the recorder's thread.
        on_checkpoint: called without arguments at a step boundary when a checkpoint is asked for.
        **settings: see docs/settings.md; each has an environment variable too.

    Returns:
        The open :class:`monitor.Run`: a context manager, live at once. ``close()`` or the end of the process ends it
        too.

    Raises:
        TypeError, ValueError: for what cannot be watched or set, with the value and the cure.
        AlreadyAttachedError: if another open run watches the optimizer.

    Example:
        >>> with monitor.attach(optimizer, scheduler):
        ...     train()
    """
    if is_disabled():
        from monitor.run._disabled import DisabledRun

        return DisabledRun(_settings_of_disabled(settings))
    optimizers = _named(optimizer)
    _check_schedulers(scheduler, optimizers)
    for function, name in ((on_event, "on_event"), (on_checkpoint, "on_checkpoint")):
        if function is not None and not callable(function):
            raise TypeError(f"{name} must be callable, got {function!r}")
    if detectors is not None:
        detectors = tuple(detectors)
        DetectorSet(detectors)  # refuses what is no detector, and two of a kind
    policies = check_policies(policies)
    resolved = resolve(_known(settings))
    make_visible()
    engine = Engine(
        optimizers,
        resolved,
        detectors=detectors,
        policies=policies,
        on_event=on_event,
        on_checkpoint=on_checkpoint,
        asks_for_gpu=bool(settings.get("gpu") or os.environ.get(variable_of("gpu"))),
    )
    enter(engine)
    return Run(engine.open())


def _settings_of_disabled(settings: Mapping[str, Any]) -> Settings:
    """Return what would be in force, the defaults if that is invalid: nothing that is switched off is refused."""
    try:
        return resolve(_known(settings))
    except (TypeError, ValueError):
        return Settings()


def _known(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    from dataclasses import fields
    from difflib import get_close_matches

    names = [f.name for f in fields(Settings)]
    for name in settings:
        if name not in names:
            close = get_close_matches(name, names, 1)
            hint = f"did you mean {close[0]!r}?" if close else "docs/settings.md lists them"
            raise TypeError(f"attach has no setting {name!r}; {hint}")
    return settings


def _named(optimizer: Any) -> dict[str, Optimizer]:
    """Return name -> optimizer, wrappers taken off."""
    if isinstance(optimizer, Mapping):
        named = {str(key): _unwrapped(one) for key, one in optimizer.items()}
    elif isinstance(optimizer, list | tuple):
        several = [_unwrapped(one) for one in optimizer]
        classes = [type(one).__name__ for one in several]
        is_telling = len(set(classes)) == len(classes)
        named = {classes[i] if is_telling else str(i): one for i, one in enumerate(several)}
    else:
        one = _unwrapped(optimizer)
        named = {type(one).__name__: one}
    if not named:
        raise ValueError(f"attach needs at least one optimizer, got an empty {type(optimizer).__name__}")
    if len({id(one) for one in named.values()}) < len(named):
        raise ValueError(f"the same optimizer stands under two names in {list(named)}; name it once")
    return named


def _unwrapped(optimizer: Any) -> Optimizer:
    """Return the optimizer whose ``step`` makes the updates."""
    inner = optimizer
    for _ in range(4):  # accelerate wraps an optimizer; Lookahead and SAM have one of their own make the step
        below = _below(inner)
        if below is None:
            break
        inner = below
    if not isinstance(inner, Optimizer):
        raise TypeError(
            "optimizer must be a torch.optim.Optimizer, a list of them or a mapping of names to them, "
            f"got {type(optimizer).__name__}"
        )
    return inner


def _below(outer: Any) -> Optimizer | None:
    """Return the one optimizer that an object holds, if it is for all of the parameters that the object itself has."""
    below = getattr(outer, "optimizer", None)
    if isinstance(below, Optimizer):
        return below
    held = {id(one): one for one in getattr(outer, "__dict__", {}).values() if isinstance(one, Optimizer)}
    if len(held) != 1 or id(outer) in held:
        return None
    (below,) = held.values()
    return below if not isinstance(outer, Optimizer) or _ids_of(outer) <= _ids_of(below) else None


def _ids_of(optimizer: Optimizer) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def _check_schedulers(scheduler: Any, optimizers: Mapping[str, Optimizer]) -> None:
    for one in _flattened(scheduler):
        below = getattr(one, "optimizer", None)
        if below is None:
            if isinstance(one, LRScheduler) or hasattr(one, "step"):
                continue  # a schedule of another make: nothing to compare
            raise TypeError(f"scheduler must be an LR scheduler, several, a mapping or None, got {type(one).__name__}")
        if not any(_unwrapped(below) is known for known in optimizers.values()):
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
