"""ignite: :func:`attach` a run to the engine that trains.

::

    from monitor.integrations.ignite import attach

    attach(trainer, optimizer, evaluators={"validation": evaluator})
    trainer.run(loader, max_epochs=10)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ignite.engine import Engine, Events

from monitor.integrations._session import Session, planned


class _Handlers:
    def __init__(self, optimizer: Any, scheduler: Any, settings: Mapping[str, Any]) -> None:
        self._watched = optimizer, scheduler
        self.session = Session(**settings)

    def open(self, engine: Engine) -> None:
        state = engine.state
        length = state.epoch_length
        total = planned(length * state.max_epochs if length and state.max_epochs else None)
        self.session.open(lambda: (*self._watched, {"total_steps": total}))
        self.session.continue_at(state.iteration)

    def look(self, engine: Engine) -> None:
        if self.session.should_stop:
            engine.terminate()

    def note_epoch(self, engine: Engine) -> None:
        self.session.log({"epoch": engine.state.epoch})

    def note_metrics(self, engine: Engine, name: str) -> None:
        values = {f"{name}_{key}": value for key, value in engine.state.metrics.items()}
        loss = values.pop(f"{name}_loss", None)
        self.session.log(values, val_loss=None if loss is None else {name: loss})

    def close(self, engine: Engine) -> None:
        self.session.close()

    def fail(self, engine: Engine, error: BaseException) -> None:
        """Close all runs of this engine, and raise the exception again where ignite would have: without a handler of
        the user's."""
        handlers = [handler for handler, *_ in engine._event_handlers[Events.EXCEPTION_RAISED]]
        ours = [one for handler in handlers if isinstance(one := getattr(handler, "__self__", None), _Handlers)]
        for one in ours:
            one.session.close(error)
        if len(ours) == len(handlers):
            raise error


def attach(
    engine: Engine,
    optimizer: Any,
    scheduler: Any = None,
    *,
    evaluators: Mapping[str, Engine] | None = None,
    **settings: Any,
) -> None:
    """Watch each ``run`` of an engine: from its start to its end, or to the exception that ends it.

    The planned steps are epochs times epoch length, for an engine that makes one step an iteration: give
    ``total_steps`` for another. ``monitor stop`` terminates the engine.

    Args:
        engine: what trains.
        optimizer: as :func:`monitor.attach` takes it.
        scheduler: likewise.
        evaluators: engines whose metrics are shown after each of their runs, by name; ``loss`` among them is a
            validation loss.
        **settings: as :func:`monitor.attach` takes them.
    """
    handlers = _Handlers(optimizer, scheduler, settings)
    engine.add_event_handler(Events.STARTED, handlers.open)
    engine.add_event_handler(Events.ITERATION_COMPLETED, handlers.look)
    engine.add_event_handler(Events.EPOCH_COMPLETED, handlers.note_epoch)
    engine.add_event_handler(Events.COMPLETED, handlers.close)
    engine.add_event_handler(Events.EXCEPTION_RAISED, handlers.fail)
    for name, evaluator in (evaluators or {}).items():
        evaluator.add_event_handler(Events.COMPLETED, handlers.note_metrics, name)
