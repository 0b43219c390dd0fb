"""Ranks on several hosts: two network namespaces with a cable between them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from monitor.store import KnownRun, list_runs
from tests.ranks.test_travel import wait_for

PORT = "29511"
OF_HOST = ("training_host_", "training_process_", "training_monitor_collect_", "process_", "python_")
ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, os, sys, time, urllib.request
import torch, torch.distributed as dist
import monitor
from tests.torch.agreeing_layouts import data_parallel

dist.init_process_group("gloo")
made, losses = data_parallel(), []
rank = dist.get_rank()
settings = {"gpu": False, "linger": 0, "host": "0.0.0.0", "read_token": "a-token-to-read-with", "name": "hosts"}
with monitor.attach(made.optimizer, **settings) as run:
    deadline = time.monotonic() + 60.0
    is_known = False
    while not is_known and time.monotonic() < deadline:
        for _ in range(20):
            losses.append(made.backward())
            made.optimizer.step()
            made.optimizer.zero_grad()
            time.sleep(0.01)
        shown = run.snapshot()
        found = [(sum(bool(one.url) for one in shown.ranks), shown.summed_ranks) == (2, 2)]
        dist.broadcast_object_list(found)
        (is_known,) = found
    port = run.url.rpartition(":")[2]
    request = lambda path: urllib.request.urlopen(urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", headers={"Authorization": "Bearer a-token-to-read-with"}))
    targets = json.load(request("/api/v1/targets")) if rank == 0 else []
    lines = request("/metrics").read().decode().splitlines()
    metrics = sorted({line.replace(" ", "{").split("{")[0] for line in lines if line[0] != "#"})
every = [None] * dist.get_world_size()
dist.all_gather_object(every, losses)
history = run.history()["optimizers"]["SGD"]["loss"]
print(json.dumps({
    "loss": history, "mean": [sum(one) / len(one) for one in zip(*every)], "id": run.id,
    "targets": [one["targets"][0] for one in targets], "metrics": metrics,
}))
dist.barrier()
dist.destroy_process_group()
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Make two, at 10.77.0.1 and 10.77.0.2."""
    names = [f"monitor-{os.getpid()}-{number}" for number in (1, 2)]
    if shutil.which("ip") is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("network namespaces need root and iproute2")
    try:
        for name in names:
            ip("netns", "add", name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    ends = [f"m{os.getpid()}{name[-1]}" for name in names]
    try:
        ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for number, (name, end) in enumerate(zip(names, ends, strict=True), 1):
            ip("link", "set", end, "netns", name)
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            ip("netns", "delete", name)


def start(host: str, number: int, folder: Path) -> subprocess.Popen[str]:
    """Start the rank of a host, under a host name of its own."""
    environment = {
        **os.environ,
        "MASTER_ADDR": "10.77.0.1",
        "MASTER_PORT": PORT,
        "RANK": str(number),
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "GLOO_SOCKET_IFNAME": f"m{os.getpid()}{host[-1]}",
        "MONITOR_DIR": str(folder / f"runs-{number}"),
        "MONITOR_WATCHER": "process",
    }
    named = f"hostname node-{number} && exec {sys.executable} -W ignore {folder / 'train.py'}"
    return subprocess.Popen(
        ["ip", "netns", "exec", host, "unshare", "--uts", "sh", "-c", named],
        cwd=ROOT,
        env={**environment, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_ranks_on_two_hosts_are_one_run(hosts: list[str], tmp_path: Path) -> None:
    """The loss is the mean over both, the targets are both hosts, and the second one has its own readings alone."""
    (tmp_path / "train.py").write_text(SCRIPT)
    ranks = [start(host, number, tmp_path) for number, host in enumerate(hosts)]
    try:
        ends = [one.communicate(timeout=150) for one in ranks]
    finally:
        for one in ranks:
            one.kill()
            one.wait()
    assert [one.returncode for one in ranks] == [0, 0], ends
    leader, follower = (json.loads(output.splitlines()[-1]) for output, _ in ends)
    check(leader, follower)
    expected = [(leader["id"], "node-0", "finished")]
    wait_for(lambda: [(one.run_id, one.hostname, one.state) for one in runs_of(tmp_path, 0)] == expected, "the end")
    wait_for(lambda: runs_of(tmp_path, 1) == [], "the end of the other rank")


def runs_of(folder: Path, number: int) -> list[KnownRun]:
    return list_runs(folder / f"runs-{number}")


def check(leader: dict[str, Any], follower: dict[str, Any]) -> None:
    assert leader["loss"] == pytest.approx(leader["mean"], rel=1e-6)
    assert leader["targets"][0].startswith("127.0.0.1:")
    assert leader["targets"][1].startswith("node-1:")
    assert {"training_loss", "training_host_memory_used_bytes"} <= set(leader["metrics"])
    assert "training_host_memory_used_bytes" in follower["metrics"]
    assert [name for name in follower["metrics"] if not name.startswith(OF_HOST)] == []
