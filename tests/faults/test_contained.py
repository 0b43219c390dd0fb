"""An exception inside any function of ours leaves the training as it would be without a monitor."""

from __future__ import annotations

import contextlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import torch

import monitor
import monitor.control
import monitor.detect
import monitor.probe
import monitor.recorder
from monitor.detect import Detector
from monitor.probe._values import has_no_accelerator
from tests.faults.injection import Fault, InjectedError, faults_in
from tests.faults.loops import (
    NUM_MADE,
    assert_same,
    everything,
    make_batches,
    make_model,
    train_plainly,
    unwatched,
    watch,
    weights_of,
)

# Called by a patch or a hook directly: each must contain whatever happens inside it, as a test below checks.
CONTAINERS = {
    "monitor.probe._loss.back_propagated",
    "monitor.probe._scaler.watcher_of",
    "monitor.probe._scaler.note_scaler",
    "monitor.probe._loading.add_waiting",
    "monitor.probe._clipping._measure_before",
    "monitor.probe._clipping._note_norm_clip",
    "monitor.probe._clipping._note_value_clip",
    *(f"monitor.probe.{module}.looks" for module in ("_watched", "_loss")),
    *(f"monitor.probe.{module}.look_again" for module in ("_watched", "_loss", "_clipping", "_scaler")),
    "monitor.probe._loss.restricted",
    "monitor.probe._patches._abandon",
    *(f"monitor.probe.{module}.expect_usual" for module in ("_watched", "_steps", "_patches")),
    "monitor.probe._closures.FirstEvaluation._measure",
    "monitor.probe._steps.StepProbe.on_skipped",
    "monitor.probe._forerunner.Forerunner.on_skipped",
    "monitor.recorder._recorder.Recorder.run_once",
    "monitor.recorder._recorder.contained",
}
REASONS = {
    "puts patches and hooks in": {
        *("monitor.probe._patches." + n for n in ("add", "_install", "_set", "_swap", "_wearing")),
        *("monitor.probe._patches." + n for n in ("_install_sharded", "_try_to_set")),
        *("monitor.probe._patches." + n for n in ("inner_cell", "guard")),
        "monitor.probe._made.watch_add_param_group",
        *("monitor.probe._loss." + n for n in ("watch_backward", "watch_zero_grad")),
        *("monitor.probe._scaler." + n for n in ("watch_scale", "watch_scaler_step", "watch_unscale")),
        *("monitor.probe._clipping." + n for n in ("watch_clip_norm", "watch_clip_with_norm", "watch_clip_value")),
        *("monitor.probe._clipping." + n for n in ("watch_sharded_clip", "_alone")),
        "monitor.probe._loading.watch_next",
        *("monitor.probe._compilation." + n for n in ("skipped", "untraced", "_mark")),
        *("monitor.probe._steps." + n for n in ("_num_steps", "StepProbe.open", "StepProbe._make_hooks")),
    },
    "takes them out": {
        "monitor.probe._patches.remove",
        "monitor.probe._patches._uninstall",
        *(f"monitor.probe.{module}._after_fork_in_child" for module in ("_patches", "_trace", "_forward")),
        "monitor.probe._steps.StepProbe.close",
        "monitor.probe._steps.StepProbe._is_between_steps",
        "monitor.probe._steps._remove_hook",
        "monitor.probe._steps._nothing",
    },
    "reads the user's own iterable, whose exceptions are the user's": {"monitor.probe._clipping._as_list"},
    "leaves everything to looks": {
        *(f"monitor.probe.{module}.before_change" for module in ("_watched", "_clipping", "_scaler")),
        "monitor.probe._loss.before_zeroing",
    },
    "hands a failure on": {
        *(f"monitor.probe.{module}.report" for module in ("_watched", "_patches", "_loss", "_scaler", "_clipping")),
        *(f"monitor.probe.{module}.report" for module in ("_loading", "_made", "_forward")),
    },
    "a sharded model; tests/torch/test_wrapped_losses.py shows it": {
        "monitor.probe._attribution.LossAttribution.withhold",
        *(f"monitor.probe.{module}.has_leaf" for module in ("_graph", "_attribution")),
    },
    "a sharded model without a clip; tests/torch/test_summing.py shows it": {
        *("monitor.probe._gradients." + n for n in ("spread_norms_of", "_shard_of", "_weighted")),
        *("monitor.probe._norms." + n for n in ("spread_norms_of", "NormMeter._spread")),
    },
    "several threads, or a failure of ours; tests/probe shows them": {
        "monitor.probe._attribution.LossAttribution.is_reached_by",
        *("monitor.probe._steps.StepProbe." + n for n in ("_makes_way", "_part", "_spoil")),
        *(f"monitor.probe._attribution.LossAttribution.{name}" for name in ("is_trained_by", "has_passes")),
    },
    "gradients put together by hand; tests/probe/test_odd_gradients.py shows it": {
        "monitor.probe._norms.NormMeter.lose"
    },
    "a part first used beside a model that is not attached; tests/probe/test_unusual_gradients.py shows it": {
        "monitor.probe._attribution.LossAttribution._is_reached_anew",
    },
    "a tensor subclass; tests/probe/test_gradients.py shows it": {"monitor.probe._gradients._plain"},
    "needs a device; tests/faults/test_values.py shows it on memory of the host": {
        *("monitor.probe._values." + n for n in ("_Cell.poll", "_Clone.poll", "PinnedLane.send", "PinnedLane.read")),
        *("monitor.probe._values." + n for n in ("PinnedLane.disown", "PinnedLane._reclaim", "_Combined.poll")),
        "monitor.probe._attribution.LossAttribution.watch_zeroing",
    },
    "needs a stall that is near; tests/probe/test_forward.py makes it fail": {
        *("monitor.probe._forward." + n for n in ("_arm", "_go_off")),
    },
    "called by the user or by a server's thread": {
        "monitor.probe._steps.StepProbe.last_activity",
        "monitor.recorder._recorder.Recorder.flush",
    },
    "a run that begins by itself; tests/auto shows it": {
        *(f"monitor.probe.{module}.forerunner_of" for module in ("_forerunner", "_steps")),
        *("monitor.probe._forerunner.Forerunner." + n for n in ("open", "close", "optimizer", "number", "on_error")),
        *("monitor.probe._forerunner.Forerunner." + n for n in ("hand_over", "abandon", "on_new_parameters")),
    },
    "is a thread's life": {
        "monitor.recorder._recorder.Recorder.start",
        "monitor.recorder._recorder.Recorder.stop",
    },
    "a loop that does nothing unusual; shown below": {
        "monitor.probe._loss.end_first_pass",
        "monitor.probe._norms.NormMeter.usual",
    },
    "several optimizers; shown below": {"monitor.probe._witness.Witness.notice"},
    "a command in force only; shown below": {
        "monitor.probe._steps.StepProbe._pass_boundary",
        "monitor.probe._steps.StepProbe._enter",
    },
}
EXEMPT = CONTAINERS.union(*REASONS.values())
FAULTS = {f.label: f for f in faults_in(monitor.probe, monitor.recorder, monitor.control, monitor.detect)}
RECORDERS = re.compile(r"_step_buffer|_decoder|phases_of$|_blindness|ForwardWatch|_forward\._(want|restore|is_armed)$")
"""What of the probe is called on the recorder's thread, where the test of what is called does not look."""
TESTED = sorted(set(FAULTS) - EXEMPT)


class Armed:
    """Attach in the place of ``unwatched`` and arm a fault for as long as the run is open."""

    def __init__(self, tmp_path: Path, fault: Fault | None = None, **settings: Any) -> None:
        self._tmp_path, self._fault = tmp_path, fault
        self._settings = {"overhead_budget": 1, **settings}  # the norm is measured wherever nothing else did
        self.run: monitor.Run | None = None

    @contextlib.contextmanager
    def __call__(self, optimizer: Any, scheduler: Any = None) -> Iterator[monitor.Run]:
        with watch(optimizer, self._tmp_path, scheduler, **self._settings) as self.run:
            if self._fault:
                self._fault.is_armed = True
            yield self.run
        if self._fault:
            self._fault.is_armed = False


@pytest.fixture(scope="module")
def expected() -> list[torch.Tensor]:
    return everything(unwatched)


@pytest.mark.sliced(2)
@pytest.mark.parametrize("label", TESTED)
def test_a_failure_of_ours_changes_no_weight_and_is_counted(
    label: str, expected: list[torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever function of ours raises at every call, the weights are bit-identical and the failure is counted."""
    fault = Fault(FAULTS[label].owner, FAULTS[label].name)
    fault.install(monkeypatch)
    armed = Armed(tmp_path, fault)
    assert_same(everything(armed), expected)
    assert armed.run is not None
    if fault.name != "set_state":  # what makes the end known
        assert armed.run.state == "finished"
    assert bool(armed.run.snapshot().errors) == bool(fault.num_hits), (armed.run.snapshot().errors, fault.num_hits)


def test_every_function_of_the_probe_is_made_to_fail(tmp_path: Path) -> None:
    """Each function of the probe is called by the loop of these tests, or stands in a list with the reason."""
    called: set[Any] = set()

    def note(frame: Any, event: str, _: Any) -> None:
        if event == "call":
            called.add(frame.f_code)

    sys.setprofile(note)
    try:
        for gradient_norm in ("auto", 1):
            everything(Armed(tmp_path, gradient_norm=gradient_norm))
    finally:
        sys.setprofile(None)
    here = [f for f in FAULTS.values() if f.label.startswith("monitor.probe.") and not RECORDERS.search(f.label)]
    missed = {f.label for f in here if isinstance(f.function, FunctionType) and f.function.__code__ not in called}
    assert missed - EXEMPT == set()


def test_lists_of_exemptions_name_what_exists() -> None:
    """No exemption outlives the function that it was made for."""
    assert EXEMPT - set(FAULTS) == set()


@pytest.mark.parametrize("label", sorted(CONTAINERS))
def test_what_a_patch_calls_contains_its_failures(label: str) -> None:
    """What patches, hooks and threads call directly catches every Exception in its own body, or has it contained."""
    assert re.search(r"except Exception|contained\(", inspect.getsource(FAULTS[label].function))


def patched_in_torch() -> set[str]:
    """Return where functions of ours stand inside torch: module attributes, class attributes, decorators' closures."""
    found = set()
    for name, module in list(sys.modules.items()):
        if name != "torch" and not name.startswith("torch."):
            continue
        for key, value in list(vars(module).items()):
            holders = [(f"{name}.{key}", value)]
            if type(value) is type and value.__module__ == name:
                holders += [(f"{name}.{key}.{k}", v) for k, v in list(vars(value).items())]
            found |= {label for label, v in holders if type(v) is FunctionType and _is_patched(v)}
    return found


def _is_patched(function: FunctionType) -> bool:
    cells = []
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # an empty cell
            cells.append(cell.cell_contents)
    return any("/monitor/probe/" in f.__code__.co_filename for f in (function, *cells) if isinstance(f, FunctionType))


HAS_DEVICE = not has_no_accelerator()
PATCHED = {
    "torch.autograd.backward",
    "torch.amp.grad_scaler.GradScaler.scale",
    "torch.amp.grad_scaler.GradScaler.step",
    "torch.amp.grad_scaler.GradScaler.unscale_",
    "torch.optim.optimizer.Optimizer.__init__",
    "torch.optim.optimizer.Optimizer.add_param_group",
    *(f"torch.{name}.zero_grad" for name in ("optim.optimizer.Optimizer", "nn.modules.module.Module") if HAS_DEVICE),
    "torch.utils.data.dataloader._BaseDataLoaderIter.__next__",
    "torch.nn.utils.clip_grad.clip_grad_norm_",
    "torch.nn.utils.clip_grad.clip_grad_value_",
    "torch.nn.utils.clip_grad._clip_grads_with_norm_",
    "torch.nn.utils.clip_grads_with_norm_",
}


def test_the_patches_are_those_that_are_tested(tmp_path: Path) -> None:
    """Searching the whole of torch finds the patches of this list while a run is open, and none after."""
    optimizer = torch.optim.SGD(make_model().parameters(), lr=0.1)
    before = patched_in_torch()
    with watch(optimizer, tmp_path):
        found = patched_in_torch()
    assert before == set()
    # The same functions stand under other names too: torch.nn.utils.clip_grad_norm_ and the like.
    homes = {label for label in found if label in PATCHED}
    assert homes == PATCHED
    assert {label.rpartition(".")[2] for label in found} == {label.rpartition(".")[2] for label in PATCHED}
    assert patched_in_torch() == set()


def test_failure_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A contained failure stands in the snapshot, by component, and in the log of events, once per kind."""
    fault = Fault(FAULTS["monitor.probe._steps._lr_values"].owner, "_lr_values")
    fault.install(monkeypatch)
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=torch.tensor(0.1))
    with watch(optimizer, tmp_path) as run:
        fault.is_armed = True
        train_plainly(model, optimizer, make_batches(3))
        run.flush()
    assert run.snapshot().errors == {"probe": 3}
    (event,) = [e for e in run.events() if e.kind == "internal"]
    assert event.severity == "warning"
    assert event.details == {"component": "probe"}
    assert event.message == "probe: InjectedError: monitor.probe._steps._lr_values"


COMMANDED = [label for label in TESTED if ".control." in label] + [
    "monitor.probe._steps.StepProbe._pass_boundary",
    "monitor.probe._steps.StepProbe._enter",
]


@pytest.mark.parametrize("label", COMMANDED)
def test_a_failure_while_a_command_is_carried_out_stops_nothing(
    label: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever function of the control fails, all steps are made and none of it reaches the loop."""
    fault = Fault(FAULTS[label].owner, FAULTS[label].name)
    fault.install(monkeypatch)
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = weights_of(model)
    with watch(optimizer, tmp_path) as run:
        run.reduce_lr(0.5)
        run.reduce_lr(0.5, over_steps=3)
        fault.is_armed = True
        train_plainly(model, optimizer, make_batches())
        fault.is_armed = False
    assert not any(torch.equal(a, b) for a, b in zip(before, weights_of(model), strict=True))
    assert bool(run.snapshot().errors) == bool(fault.num_hits)


@pytest.mark.parametrize("label", REASONS["a loop that does nothing unusual; shown below"])
def test_a_failure_in_a_plain_loop_changes_no_weight(
    label: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What only a loop without anything unusual comes to may fail as well."""
    fault = Fault(FAULTS[label].owner, FAULTS[label].name)
    fault.install(monkeypatch)
    found = []
    for is_watched in (False, True):
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with watch(optimizer, tmp_path) if is_watched else contextlib.nullcontext() as run:
            fault.is_armed = is_watched
            train_plainly(model, optimizer, make_batches(20))
            fault.is_armed = False
        found.append(weights_of(model))
    assert_same(found[1], found[0])
    assert fault.num_hits
    assert run.snapshot().errors
    assert run.step == 20


@pytest.mark.parametrize("label", REASONS["several optimizers; shown below"])
def test_a_failure_with_several_optimizers_changes_no_weight(
    label: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What only a loop with an optimizer a layer comes to may fail as well."""
    fault = Fault(FAULTS[label].owner, FAULTS[label].name)
    fault.install(monkeypatch)
    found = []
    for is_watched in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
        optimizers = {str(i): torch.optim.SGD(layer.parameters(), lr=0.1) for i, layer in enumerate(model)}
        with watch(optimizers, tmp_path) if is_watched else contextlib.nullcontext() as run:
            fault.is_armed = is_watched
            for _ in range(20):
                model(torch.ones(2, 3)).square().mean().backward()
                for optimizer in optimizers.values():
                    optimizer.step()
                    optimizer.zero_grad()
            fault.is_armed = False
        found.append(weights_of(model))
    assert_same(found[1], found[0])
    assert fault.num_hits
    assert run.snapshot().errors
    assert run.step == 20


class BrokenDetector(Detector):
    """A detector of the user's own that fails at every step."""

    kind = "broken"

    def update(self, step: monitor.Step) -> None:
        raise InjectedError(step.number)


def test_a_failing_detector_costs_its_events_only(tmp_path: Path, expected: list[torch.Tensor]) -> None:
    """A detector that raises is counted; the steps are recorded all the same."""
    armed = Armed(tmp_path, detectors=[BrokenDetector()])
    assert_same(everything(armed), expected)
    assert armed.run is not None
    snapshot = armed.run.snapshot()
    assert snapshot.errors == {"detect": NUM_MADE + 1}
    assert snapshot.optimizers[0].steps == NUM_MADE


@pytest.mark.parametrize("error", [InjectedError, SystemExit, KeyboardInterrupt])
def test_a_failing_on_event_is_contained(
    error: type[BaseException], tmp_path: Path, expected: list[torch.Tensor]
) -> None:
    """Whatever the user's on_event raises, the recorder continues digesting."""

    def on_event(_: monitor.Event) -> None:
        raise error

    armed = Armed(tmp_path, on_event=on_event)
    assert_same(everything(armed), expected)
    assert armed.run is not None
    snapshot = armed.run.snapshot()
    assert snapshot.errors["on_event"] >= 2
    assert snapshot.optimizers[0].steps == NUM_MADE


def test_a_patch_without_a_place_is_reported_and_the_others_are_put_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A torch that lacks one of the patched functions is watched through the others."""
    monkeypatch.delattr(torch.utils.data.dataloader._BaseDataLoaderIter, "__next__")
    with watch(torch.optim.SGD(make_model().parameters(), lr=0.1), tmp_path) as run:
        assert _is_patched(torch.autograd.backward)
        assert run.snapshot().errors == {"probe": 1}
    assert not _is_patched(torch.autograd.backward)
