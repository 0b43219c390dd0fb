"""What holds for every test: it leaves no thread, no listening port, no child process, no hook and no patch behind."""

from __future__ import annotations

import logging
import math
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CellType, FunctionType
from typing import Any

import hypothesis
import psutil
import pytest

# Two workers, and the scripts that they start, share few cores: more threads than cores make torch crawl.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell's background job ignores Ctrl-C, and so would each process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in every run, however slow the machine is; `--hypothesis-profile=default` tries others.
hypothesis.settings.register_profile(
    "repeatable",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("repeatable")

# A thread that was told to end, or a socket that was closed, may need a moment to be gone, on a busy machine a long one
_GRACE_SECONDS = 30.0
_MONITOR = str(Path(__file__).resolve().parents[1] / "monitor") + os.sep
# Where in torch the monitor may put a function of its own while a run is open.
_PATCHED_OWNERS = (
    ("torch", "Tensor"),
    ("torch.autograd", None),
    ("torch.nn", "Module"),
    ("torch.amp.grad_scaler", "GradScaler"),
    ("torch.nn.utils", None),
    ("torch.nn.utils.clip_grad", None),
    ("torch.distributed.fsdp.fully_sharded_data_parallel", "FullyShardedDataParallel"),
    ("torch.distributed.fsdp.sharded_grad_scaler", "ShardedGradScaler"),
    ("torch.utils.data.dataloader", "DataLoader"),
    ("torch.utils.data.dataloader", "_BaseDataLoaderIter"),
)
# The processes that an interpreter starts when it first needs them and keeps to its end, by what holds their ids. No
# test may end one: multiprocessing's tracker then unlinks the semaphores made so far, and objects of earlier tests that
# the garbage collector has not reached yet still hold some.
_HELPERS = (
    ("multiprocessing.resource_tracker", "_resource_tracker", "_pid"),
    ("multiprocessing.forkserver", "_forkserver", "_forkserver_pid"),
    ("joblib.externals.loky.backend.resource_tracker", "_resource_tracker", "_pid"),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--whole", action="store_true", help="every case of the long matrices, not a slice drawn at random"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of each test that is marked as sliced keep some cases: others with another seed, the same in each worker."""
    if config.getoption("--whole"):
        return
    matrices: dict[str, list[pytest.Item]] = {}
    for item in sorted(items, key=lambda item: item.nodeid):
        if item.get_closest_marker("sliced") is not None:
            matrices.setdefault(item.nodeid.partition("[")[0], []).append(item)
    left_out: set[pytest.Item] = set()
    for name, cases in matrices.items():
        share = cases[0].get_closest_marker("sliced").args[0]  # type: ignore[union-attr]
        drawn = random.Random(f"{config.getoption('randomly_seed', 0)} {name}")
        left_out.update(drawn.sample(cases, len(cases) - math.ceil(len(cases) / share)))
    if left_out:
        config.hook.pytest_deselected(items=sorted(left_out, key=lambda item: item.nodeid))
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True)
def _home_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep run folders, and settings of the machine's owner, out of the tests."""
    for name in [name for name in os.environ if name == "MONITOR" or name.startswith("MONITOR_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MONITOR_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("MONITOR_STORE_BYTES", "0")  # nor is a store kept where nobody asks for it
    monkeypatch.setenv("MONITOR_WATCHER", "thread")  # tests of the watcher process ask for it themselves


@pytest.fixture(autouse=True)
def _lines_of_its_own() -> None:
    """Let a test log what it has alone, whatever an earlier run has used up of the lines that are let pass."""
    logger = logging.getLogger("monitor")
    logger.filters[:] = [one for one in logger.filters if type(one).__name__ != "_Bounded"]


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """Give a test the random numbers that it has alone, whatever ran before it."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _patience_with_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for the disk as long as a busy machine takes to answer; a test whose disk hangs sets its own limit."""
    for limit in (
        "store._disk.PATIENCE_SECONDS",
        "watcher._publisher.PATIENCE_SECONDS",
        "run._identity._COMMIT_SECONDS",
    ):
        monkeypatch.setattr(f"monitor.{limit}", 60.0)


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


def children() -> set[Any]:
    """The processes that a test has to end, watchers among them; the interpreter's own helpers are none of them."""
    found = [child for child in psutil.Process().children() if _is_alive(child)]
    helpers = {_helper_pid(*helper) for helper in _HELPERS}  # asked last: one that was just started is known
    return {child for child in found if child.pid not in helpers} | set(watchers(os.environ.get("MONITOR_DIR")))


def watchers(directory: str | Path | None) -> list[psutil.Process]:
    """The watcher processes of runs in a directory: they are nobody's children."""
    return [process for process in psutil.process_iter() if _is_watcher_of(process, str(directory))]


def _is_watcher_of(process: psutil.Process, directory: str) -> bool:
    try:
        return "training-monitor" in process.cmdline() and process.environ().get("MONITOR_DIR") == directory
    except psutil.Error:  # it has ended, or is somebody else's
        return False


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:  # it ended between the two questions
        return False


def _helper_pid(module: str, holder: str, attribute: str) -> int | None:
    return getattr(getattr(sys.modules.get(module), holder, None), attribute, None)


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
    "child processes": children,
    "patches of torch": _patches,
    "global optimizer hooks": _hooks,
}
