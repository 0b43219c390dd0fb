"""What the launcher of several ranks has said about this process, and where other hosts find it."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from urllib.parse import urlsplit

from monitor.control import world

_NUMBERS = (("WORLD_SIZE", "RANK"), ("SLURM_NTASKS", "SLURM_PROCID"))
"""Variables of launchers that say how many ranks there are, and which one this is."""


def expected_world(environ: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Return number of ranks and own rank: those of torch.distributed, or those that a launcher has announced.

    >>> expected_world({"WORLD_SIZE": "4", "RANK": "2"}), expected_world({})
    ((4, 2), (1, 0))
    """
    if world()[0] > 1:
        return world()
    for size, rank in _NUMBERS:
        with suppress(KeyError, ValueError):
            return int(environ[size]), int(environ[rank])
    return 1, 0


def local_rank(environ: Mapping[str, str] = os.environ) -> int | None:
    """Return the number of this rank on its host, if a launcher has announced it.

    >>> local_rank({"LOCAL_RANK": "1"}), local_rank({})
    (1, None)
    """
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        with suppress(KeyError, ValueError):
            return int(environ[name])
    return None


def reachable(url: str | None, bind_host: str, hostname: str = "") -> str:
    """Return the address under which other hosts reach a server; empty where they do not.

    >>> reachable("http://127.0.0.1:9477", "127.0.0.1"), reachable("http://127.0.0.1:9477", "0.0.0.0", "node-b")
    ('', 'http://node-b:9477')
    """
    if url is None:
        return ""
    parts = urlsplit(url)
    with suppress(ValueError):
        address = ipaddress.ip_address(bind_host)
        if address.is_loopback:
            return ""
        if address.is_unspecified:
            return f"{parts.scheme}://{hostname or socket.gethostname()}:{parts.port}"
    return "" if bind_host == "localhost" else url
