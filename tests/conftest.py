"""What holds for every test: it leaves no thread, no listening port, no child process, no hook and no patch behind."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CellType, FunctionType
from typing import Any

import psutil
import pytest

# Two workers, and the scripts that they start, share few cores: more threads than cores make torch crawl.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A thread that was told to end, or a socket that was closed, may need a moment to be gone.
_GRACE_SECONDS = 3.0
_MONITOR = str(Path(__file__).resolve().parents[1] / "monitor") + os.sep
# Where in torch the monitor may put a function of its own while a run is open.
_PATCHED_OWNERS = (
    ("torch", "Tensor"),
    ("torch.autograd", None),
    ("torch.amp.grad_scaler", "GradScaler"),
    ("torch.nn.utils", None),
    ("torch.nn.utils.clip_grad", None),
    ("torch.distributed.fsdp.fully_sharded_data_parallel", "FullyShardedDataParallel"),
    ("torch.distributed.fsdp.sharded_grad_scaler", "ShardedGradScaler"),
    ("torch.utils.data.dataloader", "DataLoader"),
    ("torch.utils.data.dataloader", "_BaseDataLoaderIter"),
)


@pytest.fixture(autouse=True)
def _home_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep run folders, and settings of the machine's owner, out of the tests."""
    for name in [name for name in os.environ if name.startswith("MONITOR_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MONITOR_DIR", str(tmp_path / "runs"))


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(_home_of_its_own: None) -> Iterator[None]:
    """Fail a test that leaves something running, bound or patched."""
    before = {name: look() for name, look in _LOOKS.items()}
    yield
    for name, look in _LOOKS.items():
        left = _wait_until_gone(look, before[name])
        assert not left, f"this test left {name} behind: {sorted(map(str, left))}"


def _wait_until_gone(look: Callable[[], set[Any]], before: set[Any]) -> set[Any]:
    deadline = time.monotonic() + _GRACE_SECONDS
    while (left := look() - before) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def _threads() -> set[threading.Thread]:
    # The progress bars that torch's compiler draws where tqdm is installed keep one thread for the whole process.
    return {t for t in threading.enumerate() if t.is_alive() and type(t).__name__ != "TMonitor"}


def _ports() -> set[Any]:
    found = psutil.Process().net_connections(kind="inet")
    return {connection.laddr for connection in found if connection.status == psutil.CONN_LISTEN}


def _children() -> set[Any]:
    return {child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE}


def _patches() -> set[Any]:
    """Every name in torch at which, or in whose closure, a function of the monitor stands."""
    found = set()
    for module, class_name in _PATCHED_OWNERS:
        holder = sys.modules.get(module)
        if holder is not None:
            found |= _functions_of_ours(getattr(holder, class_name) if class_name else holder)
    if "torch.optim" in sys.modules:
        pending = [sys.modules["torch.optim"].Optimizer]
        while pending:
            kind = pending.pop()
            pending += type.__subclasses__(kind)
            if kind.__module__.partition(".")[0] == "torch":
                found |= _functions_of_ours(kind)
    return found


def _functions_of_ours(owner: Any) -> set[str]:
    return {f"{owner.__name__}.{name}" for name, value in list(vars(owner).items()) if _is_ours(value)}


def _is_ours(value: Any, depth: int = 4) -> bool:
    if not isinstance(value, FunctionType) or depth == 0:
        return False
    cells = [cell.cell_contents for cell in value.__closure__ or () if cell != CellType()]
    return value.__code__.co_filename.startswith(_MONITOR) or any(_is_ours(cell, depth - 1) for cell in cells)


def _hooks() -> set[Any]:
    """The hooks on all optimizers at once; those on one optimizer are the business of the tests that hold it."""
    optimizer = sys.modules.get("torch.optim.optimizer")
    if optimizer is None:
        return set()
    hooks = (*optimizer._global_optimizer_pre_hooks.values(), *optimizer._global_optimizer_post_hooks.values())
    return {hook for hook in hooks if getattr(hook, "__module__", "").partition(".")[0] == "monitor"}


_LOOKS: dict[str, Callable[[], set[Any]]] = {
    "threads": _threads,
    "listening ports": _ports,
    "child processes": _children,
    "patches of torch": _patches,
    "global optimizer hooks": _hooks,
}
