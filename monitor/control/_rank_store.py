"""The store of torch.distributed's process group, over a connection of our own."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch.distributed as dist

PREFIX = "training_monitor/"
SECONDS = 3.0
"""How long a connection to the store may take."""
INSIST_SECONDS = 20.0
"""How long a store that has closed its connection is asked again."""


class RankStore:
    """Keys and values that all ranks share, as text. No collective: a rank that does not take part delays nobody.

    Args:
        store: that of the process group.
        channel: what tells the keys of one run from those of another in the same group.

    Raises:
        RuntimeError: from every method, where the store does not answer.
    """

    def __init__(self, store: Any, channel: str) -> None:
        self._prefix = f"{PREFIX}{channel}/"
        self._store = store.clone()  # of its own: a client has one lock, and the process group's must stay free
        self._store.set_timeout(timedelta(seconds=SECONDS))

    @property
    def takes_news(self) -> bool:
        """Tell whether values may be set again and again: a FileStore keeps each in its file for good."""
        return bool(self._store.has_extended_api())

    def has(self, keys: Iterable[str]) -> bool:
        """Tell whether all of these keys are there."""
        return bool(self._store.check([self._prefix + key for key in keys]))

    def get(self, key: str) -> Any:
        """Return a value; None where there is none. Never waits for one."""
        if not self.has([key]):
            return None
        return json.loads(self._store.get(self._prefix + key))

    def get_all(self, keys: list[str]) -> list[Any]:
        """Return values that are all there, in one question."""
        return [json.loads(value) for value in self._store.multi_get([self._prefix + key for key in keys])]

    def set(self, key: str, value: Any) -> None:
        """Set a value."""
        self._store.set(self._prefix + key, json.dumps(value))

    def write_once(self, key: str, value: str) -> str:
        """Set a value unless there is one; return the one that stands there from now on."""
        found: str = json.loads(self._store.compare_set(self._prefix + key, "", json.dumps(value)))
        return found

    def insist(self, key: str, value: str) -> str:
        """As write_once, over new connections for INSIST_SECONDS: another rank may have read what stands there. A store
        that is gone for longer takes the training along."""
        deadline = time.monotonic() + INSIST_SECONDS
        found = self._attempt(key, value)
        while found is None and time.monotonic() < deadline:
            time.sleep(0.1)
            found = self._attempt(key, value, is_anew=True)
        return value if found is None else found

    def _attempt(self, key: str, value: str, *, is_anew: bool = False) -> str | None:
        try:
            if is_anew:
                self._store = self._store.clone()
            return self.write_once(key, value)
        except RuntimeError:
            return None


def world() -> tuple[int, int]:
    """Return (number of ranks, own rank) of torch.distributed; (1, 0) without it."""
    if not dist.is_available() or not dist.is_initialized():
        return 1, 0
    try:
        return dist.get_world_size(), dist.get_rank()
    except (RuntimeError, ValueError):  # the group was destroyed at this very moment
        return 1, 0


def store_host() -> str:
    """Return the host of the process group's store as the ranks know it; empty where it has none, or there is none."""
    if world()[0] == 1:
        return ""
    from torch.distributed import distributed_c10d as c10d

    store: Any = c10d._get_default_store()
    while hasattr(store, "underlying_store"):
        store = store.underlying_store
    return str(getattr(store, "host", ""))


def open_stores(channel: str) -> tuple[RankStore, RankStore]:
    """Return two connections to the process group's store, for a thread of ours and for the training thread. Raises
    RuntimeError where there is none."""
    from torch.distributed import distributed_c10d as c10d

    store = c10d._get_default_store()
    return RankStore(store, channel), RankStore(store, channel)
