"""The loss under torch's wrappers of a model, with micro-batches: what is added up out of sight counts too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

from monitor import Run

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's own, of CPU meshes and of FSDP1's age


@pytest.fixture(scope="module", autouse=True)
def _one_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One process of one rank, for all tests: torch's own threads and ports stay until its end."""
    store = distributed.FileStore(str(tmp_path_factory.mktemp("group") / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    init_device_mesh("cpu", (1,))
    FullyShardedDataParallel(net(), device_id=torch.device("cpu"))
    yield
    distributed.destroy_process_group()


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def sharded() -> Any:
    return fully_shard(net(), mesh=init_device_mesh("cpu", (1,)))


class Unsynchronized:
    """``no_sync`` of a model that ``fully_shard`` has sharded."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __enter__(self) -> None:
        self._model.set_requires_gradient_sync(False)

    def __exit__(self, *_: object) -> None:
        self._model.set_requires_gradient_sync(True)


WRAPPED: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "DDP": (lambda: DistributedDataParallel(net()), lambda _: nullcontext()),
    "DDP, buckets": (lambda: DistributedDataParallel(net(), gradient_as_bucket_view=True), lambda _: nullcontext()),
    "DDP, no_sync": (lambda: DistributedDataParallel(net()), lambda model: model.no_sync()),
    "fully_shard": (sharded, lambda _: nullcontext()),
    "fully_shard, no sync": (sharded, Unsynchronized),
    "FSDP": (lambda: FullyShardedDataParallel(net(), device_id=torch.device("cpu")), lambda _: nullcontext()),
    "FSDP, no_sync": (
        lambda: FullyShardedDataParallel(net(), device_id=torch.device("cpu"), use_orig_params=True),
        lambda model: model.no_sync(),
    ),
}


@pytest.mark.parametrize(("make", "unsynchronized"), WRAPPED.values(), ids=WRAPPED)
def test_micro_batches_of_a_wrapped_model_add_up(
    attach: Callable[..., Run], make: Callable[[], Any], unsynchronized: Callable[[Any], Any]
) -> None:
    """At each step, from the first on, for longer than it takes to choose what is looked at."""
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    expected = []
    x = torch.randn(4, 3)
    run = attach(optimizer)
    for _ in range(12):
        parts = []
        for i in range(3):
            with unsynchronized(model) if i < 2 else nullcontext():
                loss = (model(x * (i + 1)) - 1).square().mean() / 3
                loss.backward()
                parts.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
        expected.append(pytest.approx(sum(parts)))
    assert run.flush(60)
    assert run.history()["optimizers"]["SGD"]["loss"] == expected
    assert run.snapshot().errors == {}
