"""Values cross from a device without the host waiting for it: shown on host memory in which copies land late."""

from __future__ import annotations

import gc
import math
from collections import deque
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from monitor._records import Step
from monitor.probe import StepBuffer, _clipping, _loss, take
from monitor.probe._step_buffer import GIVE_UP_SECONDS
from monitor.probe._values import PinnedLane, _Clone, divided
from monitor.recorder import Decoder, EntrySource
from tests.faults.loops import watch


class Stream:
    """A device that does what it is asked later, in order: copies wait until ``run`` lets them happen."""

    def __init__(self) -> None:
        self._queue: deque[tuple[Tensor, Tensor]] = deque()

    def copy(self, target: Tensor, source: Tensor) -> None:
        self._queue.append((target, source))

    def run(self, number: int = 1_000_000) -> None:
        for _ in range(min(number, len(self._queue))):
            target, source = self._queue.popleft()
            target.copy_(source)


class _LateCell:
    def __init__(self, cell: Tensor, stream: Stream) -> None:
        self._cell, self._stream = cell, stream

    def copy_(self, source: Tensor, non_blocking: bool = False) -> None:
        assert non_blocking, "the host would wait for the device"
        self._stream.copy(self._cell, source.detach().clone())  # stream order: the value at this moment


def make_lane(size: int = 4, dtype: torch.dtype = torch.float32) -> tuple[PinnedLane, Stream]:
    lane, stream = PinnedLane(torch.empty(size, dtype=dtype)), Stream()
    lane._cells = [_LateCell(cell, stream) for cell in lane._cells]  # type: ignore[misc]
    return lane, stream


def sent(lane: PinnedLane, value: Any) -> Any:
    pending = lane.send(value if isinstance(value, Tensor) else torch.tensor(value))
    assert pending is not None
    return pending


def test_value_is_there_when_it_has_landed_and_not_before() -> None:
    """A poll before the copy gives None; after it the value of the moment of sending, also when asked again."""
    lane, stream = make_lane()
    tensor = torch.tensor(0.5)
    pending = sent(lane, tensor)
    tensor.fill_(9.0)
    assert pending.poll() is None
    assert pending.poll() is None
    stream.run()
    assert pending.poll() == 0.5
    assert pending.poll() == 0.5


def test_quotient_is_there_when_both_have_landed() -> None:
    """A norm on its way, divided by a scale on its way: the scale is that of the moment of dividing."""
    lane, stream = make_lane()
    norm, scale = sent(lane, 512.0), torch.tensor(256.0)
    quotient = divided(norm, sent(lane, scale))
    scale.fill_(9.0)
    stream.run(1)
    assert quotient.poll() is None
    stream.run()
    assert quotient.poll() == quotient.poll() == 2.0
    assert divided(norm, 128.0).poll() == 4.0
    assert divided(6.0, 2.0) == 3.0
    assert math.isnan(divided(6.0, 0.0))


@pytest.mark.parametrize("value", [0.0, -0.0, math.inf, -math.inf, math.nan, 1e-45, 3.4e38, -1.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_value_lands(value: float, dtype: torch.dtype) -> None:
    """Zero, infinities, NaN and subnormals land; none of them is taken for an empty cell."""
    lane, stream = make_lane(dtype=dtype)
    pending = sent(lane, torch.tensor(value, dtype=dtype))
    stream.run()
    expected = torch.tensor(value, dtype=dtype).item()
    landed = pending.poll()
    assert landed == expected or (math.isnan(expected) and math.isnan(landed))
    assert math.copysign(1, landed) == math.copysign(1, expected) or math.isnan(expected)


@pytest.mark.parametrize(
    ("dtype", "value", "lane_dtype"),
    [
        (torch.bfloat16, 1.5, torch.float32),
        (torch.float16, 0.333251953125, torch.float32),
        (torch.float64, 1 / 3, torch.float64),
        (torch.int64, 7, torch.float32),
        (torch.bool, 1, torch.float32),
    ],
)
def test_other_types_arrive_converted(dtype: torch.dtype, value: float, lane_dtype: torch.dtype) -> None:
    """bfloat16, float16 and whole numbers arrive exactly in a float32 lane, float64 unrounded in its own."""
    lane, stream = make_lane(dtype=lane_dtype)
    pending = sent(lane, torch.tensor(value, dtype=dtype))
    stream.run()
    assert pending.poll() == value


def test_one_element_of_any_shape_is_taken() -> None:
    """A tensor of shape (1, 1) is one value."""
    lane, stream = make_lane()
    pending = sent(lane, torch.tensor([[2.0]]))
    stream.run()
    assert pending.poll() == 2.0


def test_full_lane_drops_and_goes_on_when_cells_are_free() -> None:
    """With every cell on its way a send gives None, without waiting; a cell that was read takes the next value."""
    lane, stream = make_lane(2)
    first, second = sent(lane, 1.0), sent(lane, 2.0)
    assert lane.send(torch.tensor(3.0)) is None
    stream.run(1)
    assert (first.poll(), second.poll()) == (1.0, None)
    third = sent(lane, 3.0)
    stream.run()
    assert (first.poll(), second.poll(), third.poll()) == (1.0, 2.0, 3.0)


def test_values_that_nobody_reads_do_not_use_the_lane_up() -> None:
    """Values that are dropped unread (a loss cleared by zero_grad, one overridden by run.log) free their cells."""
    lane, stream = make_lane(4)
    for i in range(50):
        pending = lane.send(torch.tensor(float(i)))
        assert pending is not None, i
        stream.run()
        del pending


def test_cell_of_a_dropped_value_is_not_used_while_its_copy_is_under_way() -> None:
    """The late copy of a value that nobody waits for never lands in the place of another value."""
    lane, stream = make_lane(2)
    sent(lane, 1.0)  # dropped at once
    gc.collect()
    second = sent(lane, 2.0)
    assert lane.send(torch.tensor(3.0)) is None
    stream.run(1)
    third = sent(lane, 3.0)
    assert (second.poll(), third.poll()) == (None, None)
    stream.run()
    assert (second.poll(), third.poll()) == (2.0, 3.0)


def test_scaled_loss_carries_nothing_of_ours(tmp_path: Path) -> None:
    """What GradScaler.scale returns is saved and loaded safely as without a monitor: nothing hangs on the tensor."""
    parameter = nn.Parameter(torch.ones(2))
    scaler = torch.amp.GradScaler("cpu")
    with watch(torch.optim.SGD([parameter], lr=0.1), tmp_path):
        scaled = scaler.scale(parameter.sum())
    assert vars(scaled) == {}


def test_clone_keeps_the_value_of_its_moment() -> None:
    """Where there is no pinned memory the value is cloned on its device, and read when somebody asks."""
    tensor = torch.tensor(1.0)
    clone = _Clone(tensor)
    tensor.fill_(2.0)
    assert clone.poll() == 1.0


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Carried:
    """A step buffer, and what the recorder takes out of it."""

    def __init__(self, clock: _Clock | None = None, **settings: Any) -> None:
        self.errors: list[Exception] = []
        self.buffer = StepBuffer(on_error=self.errors.append, clock=clock or _Clock(), **settings)
        self.source = EntrySource(Decoder(), self.errors.append, self.buffer.take)

    def append(self, number: int, losses: Any, time: float = 0.0) -> None:
        self.buffer.append(entry(self.buffer, number, losses, time=time))

    def drain(self) -> list[tuple[int, float | None]]:
        steps = list(self.source.drain(0.0))
        assert all(isinstance(step, Step) for step in steps)
        return [(step.number, step.loss) for step in steps if isinstance(step, Step)]


def entry(buffer: StepBuffer, number: int, losses: Any, norms: Any = (), time: float = 0.0) -> tuple[Any, ...]:
    passes = [(number, loss) for number, loss in enumerate(losses, 1)]
    opened = ((), None, [0.1], None, None, passes, norms, None, None)
    return (buffer.next_sequence(), "SGD", number, time, (), time, time, (), None, False, opened)


def test_the_buffer_waits_for_values_and_keeps_the_order() -> None:
    """A step whose value is on its way holds back those after it; all come in order once it has landed."""
    (lane, stream), carried = make_lane(8), Carried()
    carried.append(1, [sent(lane, 1.0), sent(lane, 0.5)])
    carried.append(2, [2.0])
    assert carried.drain() == []
    stream.run(1)
    assert carried.drain() == []
    stream.run()
    carried.append(3, [sent(lane, 3.0)])
    assert carried.drain() == [(1, 1.5), (2, 2.0)]
    stream.run()
    assert carried.drain() == [(3, 3.0)]
    assert (carried.source.num_dropped, carried.errors) == (0, [])


def test_the_buffer_gives_a_value_up_that_does_not_come() -> None:
    """A value that has not landed after a minute is unknown; the step is shown without it, and those after it come."""
    (lane, _), clock = make_lane(), _Clock()
    carried = Carried(clock)
    carried.append(1, [sent(lane, 1.0)])
    clock.now = GIVE_UP_SECONDS / 2
    carried.append(2, [2.0], time=clock.now)
    assert carried.drain() == []
    clock.now = GIVE_UP_SECONDS + 1
    assert carried.drain() == [(1, None), (2, 2.0)]


def test_value_dropped_by_a_full_lane_makes_the_loss_unknown_not_wrong() -> None:
    """A loss of two parts of which one was dropped is None, never the sum of the rest."""
    carried = Carried()
    carried.append(1, [1.0, None])
    assert carried.drain() == [(1, None)]


def test_a_full_buffer_drops_its_oldest_and_they_are_counted() -> None:
    """When the recorder falls behind, the newest steps are kept and the number of lost ones is exact."""
    carried = Carried(num_groups=1_000_000)
    for i in range(1, 701):
        carried.append(i, [float(i)])
    steps = carried.drain()
    assert steps[-1] == (700, 700.0)
    assert len(steps) + carried.source.num_dropped == 700
    assert [number for number, _ in steps] == list(range(701 - len(steps), 701))


def test_an_entry_of_plain_numbers_is_kept_as_bytes() -> None:
    """What waits in the buffer is nothing that the cyclic garbage collector tracks."""
    carried = Carried()
    carried.append(1, [1.0])
    (kept,) = carried.buffer.take()
    assert type(kept) is bytes


def test_an_entry_that_cannot_be_packed_is_dropped_and_told() -> None:
    """It stands in the way of none that follow, and is counted once as a failure and once as a lost step."""
    carried = Carried()
    carried.append(1, [object()])
    carried.append(2, [2.0])
    assert carried.drain() == [(2, 2.0)]
    assert (carried.source.num_dropped, [type(error) for error in carried.errors]) == (1, [TypeError])


class Syncs(TorchDispatchMode):
    """Note what would make a host wait for a device: a scalar read, or a copy to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function)
        is_away = any(isinstance(a, Tensor) and a.device.type != "cpu" for a in args)
        to_host = str((kwargs or {}).get("device")) == "cpu"
        if is_away and ("_local_scalar_dense" in name or "is_nonzero" in name or to_host):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("read", [Tensor.item, bool, float, Tensor.tolist, Tensor.cpu], ids=lambda f: f.__name__)
def test_reading_a_tensor_away_from_the_host_cannot_pass_unseen(read: Any) -> None:
    """What the next test relies on: on a meta tensor, which holds no value, every way of reading one raises."""
    with pytest.raises((RuntimeError, NotImplementedError)):
        read(torch.ones((), device="meta"))


@pytest.mark.parametrize("gradient_norm", [1, "off"])
def test_hooks_read_nothing_from_a_tensor_away_from_the_host(
    gradient_norm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every hook and patch passes over a whole training on a device without reading one value from it."""
    for module in (_loss, _clipping):  # as a torch that was built for an accelerator
        monkeypatch.setattr(module, "has_no_accelerator", lambda: False)
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)).to("meta")
    optimizers = {
        "own": OnDevice(model.parameters(), {"lr": torch.tensor(0.1, device="meta")}),
        "sgd": torch.optim.SGD(model.parameters(), lr=0.1),
    }
    syncs = Syncs()
    with watch(optimizers, tmp_path, gradient_norm=gradient_norm) as run:
        run.set_lr_factor(0.5)
        with syncs:
            for i in range(6):
                loss = model(torch.ones(2, 4, device="meta")).square().mean()
                (loss / 2).backward(retain_graph=True)
                (loss / 2).backward()
                _clip(model, i)
                for optimizer in optimizers.values():
                    optimizer.step()
                    optimizer.zero_grad()
                run.log(loss=loss, val_loss=loss, accuracy=loss.detach(), many=torch.ones(10, device="meta"))
    assert syncs.found == []
    errors = dict(run.snapshot().errors)
    assert errors.pop("log") == 6, "ten values under one name are no number; their type is told, not their content"
    assert errors == {}
    for snapshot in run.snapshot().optimizers:
        assert (snapshot.steps, snapshot.loss, snapshot.groups[0].factor) == (6, None, 0.5)


class OnDevice(torch.optim.Optimizer):
    """Descent whose learning rate is a tensor on the device and stays there."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad * group["lr"])


def _clip(model: nn.Module, i: int) -> None:
    if i % 3 == 0:
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    elif i % 3 == 1:
        nn.utils.clip_grad_value_(model.parameters(), 0.1)
    else:
        nn.utils.clip_grads_with_norm_(model.parameters(), 1.0, torch.ones((), device="meta"))


def test_values_that_cannot_be_had_are_unknown() -> None:
    """A tensor without content, or of a kind that might communicate, gives None instead of a value."""

    class Distributed(Tensor):
        pass

    assert take(torch.ones((), device="meta")) is None
    assert take(torch.ones(()).as_subclass(Distributed)) is None
    assert take(torch.tensor(1.5, dtype=torch.bfloat16)) == 1.5
