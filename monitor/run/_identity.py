"""The identity of a run: name, machine, device, versions, commit."""

from __future__ import annotations

import os
import re
import shlex
import socket
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch.optim import Optimizer

from monitor._records import RunInfo
from monitor._version import __version__
from monitor.control import world
from monitor.store import answer_within, read_text

_COMMIT_SECONDS = 0.3
"""How long the search for the commit may take; folders above the script may be mounted over a network."""
_PACKED_BYTES = 2**24
_GENERIC = frozenset({
    "__main__", "app", "cli", "experiment", "fine_tune", "finetune", "finetuning", "launch", "main", "pretrain", "run",
    "script", "scripts", "sft", "src", "start", "train", "trainer", "training",
})  # fmt: skip
"""Names of scripts and folders that say nothing of what is trained."""
_NUM_FOLDERS = 3
"""How many folders above such a script are asked for a name."""


def identify(run_id: str, name: str, start_time: float, optimizers: Iterable[Optimizer]) -> RunInfo:
    """Describe the run that starts now in this process."""
    world_size, rank = world()
    return RunInfo(
        run_id=run_id,
        name=name,
        start_time=start_time,
        monitor_version=__version__,
        torch_version=str(torch.__version__),
        device=_device_of(optimizers),
        hostname=socket.gethostname(),
        world_size=world_size,
        rank=rank,
        git_commit=answer_within(_COMMIT_SECONDS, lambda: git_commit(Path(script_path() or os.getcwd())), ""),
        pid=os.getpid(),
    )


def environment() -> dict[str, str]:
    """Describe what only the training process knows of its environment. None of its environment variables: they
    hold secrets."""
    return {
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda or "",
        "arguments": shlex.join(sys.argv[:64])[:2000],
    }


def script_path() -> str:
    """Return the path of the script that runs, or an empty string in a notebook or shell."""
    main = sys.modules.get("__main__")
    path = getattr(main, "__file__", None)
    try:
        return str(Path(path).absolute()) if path else ""
    except OSError:  # the working directory is gone
        return str(path)


def default_name() -> str:
    """Return the script's name without its ending, that of a folder that it is in where its own says nothing, such as
    ``train.py``; ``run`` in a notebook or a shell."""
    path = script_path()
    return name_of_script(Path(path)) if path else "run"


def name_of_script(path: Path) -> str:
    """Return what to call the runs of a script.

    >>> [name_of_script(Path(text)) for text in ("/work/cifar/train.py", "/work/cifar/scripts/run.py", "/work/gan.py")]
    ['cifar', 'cifar', 'gan']
    """
    names = [path.stem, *(folder.name for folder in list(path.parents)[:_NUM_FOLDERS])]
    return next((name for name in names if name and name.lower() not in _GENERIC), path.stem)


def git_commit(start: Path) -> str:
    """Return the commit of the work tree that holds ``start``, read from its files; empty if there is none."""
    for folder in (start, *start.parents):
        git = folder / ".git"
        if text := read_text(git / "HEAD"):
            ref = text.removeprefix("ref: ")
            return text if ref == text else read_text(git / ref) or _packed(git, ref)
    return ""


def _packed(git: Path, ref: str) -> str:
    packed = read_text(git / "packed-refs", _PACKED_BYTES) or ""
    found = re.search(rf"^([0-9a-f]{{40,64}}) {re.escape(ref)}$", packed, re.MULTILINE)
    return found.group(1) if found else ""


def _device_of(optimizers: Iterable[Optimizer]) -> str:
    devices = {str(p.device) for o in optimizers for g in o.param_groups for p in g["params"]}
    return ",".join(sorted(devices))
