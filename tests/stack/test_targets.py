"""How runs become targets, and cease to be: a real Prometheus on the shipped configuration, real runs, one folder."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import monitor
from monitor.server import HttpServer
from monitor.store import list_runs
from tests.certificate import self_signed
from tests.stack.real_alertmanager import prometheus_config
from tests.stack.real_prometheus import Prometheus, wait_until

TOKEN = "the-token-of-the-runs-that-are-targets"
OTHER = """
import sys, torch, monitor
optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
run = monitor.attach(optimizer, name="killed", directory=sys.argv[1], port=0, gpu=False, watcher=sys.argv[2])
run.url
print("served", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return self_signed(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def prometheus(
    tmp_path_factory: pytest.TempPathFactory, runs: Path, certificate: tuple[str, str]
) -> Iterator[Prometheus]:
    """Start a Prometheus before there is any run; what it has beside the shipped configuration is the CA."""
    folder = tmp_path_factory.mktemp("targets")
    (folder / "token").write_text(TOKEN)
    config = yaml.safe_load(prometheus_config("127.0.0.1:9", runs / "targets", folder / "token"))
    config["scrape_configs"][0]["tls_config"] = {"ca_file": certificate[0]}
    (runs / "targets").mkdir()
    with Prometheus(folder / "prometheus", yaml.safe_dump(config)) as server:
        yield server


def attach(runs: Path, **options: Any) -> monitor.Run:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    return monitor.attach(optimizer, directory=str(runs), port=0, gpu=False, token=TOKEN, **options)


def is_up(prometheus: Prometheus, run_id: str) -> float:
    """Return 1 for a run that is scraped, 0 for one that cannot be, NaN for none."""
    return prometheus.value(f'up{{run_id="{run_id}"}}')


@pytest.mark.parametrize("is_tls", [False, True], ids=["http", "https"])
def test_a_new_run_is_scraped_by_itself_and_its_end_is_seen(
    prometheus: Prometheus, runs: Path, certificate: tuple[str, str], is_tls: bool
) -> None:
    """A run shows up by itself, under its own id, with TLS or without; its last state is scraped; then it is gone."""
    tls = dict(zip(("certfile", "keyfile"), certificate, strict=True)) if is_tls else {}
    with attach(runs, name="seen", protect_metrics=True, watcher="process", **tls) as run:
        assert str(run.url).startswith("https://" if is_tls else "http://")
        wait_until(lambda: is_up(prometheus, run.id) == 1, "the run is scraped")
        (info,) = prometheus.query(f'training_run_info{{run_id="{run.id}"}}')
        address = str(run.url).partition("//")[2].rstrip("/")
        assert (info["metric"]["job"], info["metric"]["instance"]) == ("training", address)
    finished = f'max_over_time(training_run_state{{run_id="{run.id}", training_run_state="finished"}}[5m])'
    wait_until(lambda: prometheus.value(finished) == 1, "the last scrape is stored")
    wait_until(lambda: not prometheus.query(f'up{{run_id="{run.id}"}}'), "the target is gone")


def test_a_killed_run_is_seen_to_vanish(prometheus: Prometheus, runs: Path) -> None:
    """The watcher of a run that is killed tells so in one more scrape, which the alert is made of, and withdraws."""
    command = [sys.executable, "-c", OTHER, str(runs), "process"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == b"served\n"
        (run,) = (one for one in list_runs(runs) if one.pid == killed.pid)
        wait_until(lambda: is_up(prometheus, run.run_id) == 1, "the run is scraped")
        killed.send_signal(signal.SIGKILL)
    vanished = f'max_over_time(training_run_state{{run_id="{run.run_id}", training_run_state="vanished"}}[5m])'
    wait_until(lambda: prometheus.value(vanished) == 1, "the last scrape is stored")
    wait_until(lambda: not (runs / "targets" / f"{run.run_id}.json").exists(), "the target is withdrawn")

    def pending() -> set[str]:
        rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
        return {r["name"] for r in rules for a in r.get("alerts", ()) if a["labels"].get("run_id") == run.run_id}

    wait_until(lambda: "TrainingRunVanished" in pending(), "the alert is on its way")
    assert "TrainingTargetDown" not in pending()


def test_a_run_killed_with_its_watcher_is_down_until_the_next_one(prometheus: Prometheus, runs: Path) -> None:
    """A run of which nothing is left stays a target, which fails, so that alerts fire; the next run takes it away."""
    command = [sys.executable, "-c", OTHER, str(runs), "thread"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == b"served\n"
        (target,) = (runs / "targets").iterdir()
        run_id = target.stem
        wait_until(lambda: is_up(prometheus, run_id) == 1, "the run is scraped")
        killed.send_signal(signal.SIGKILL)
    wait_until(lambda: is_up(prometheus, run_id) == 0, "the run is down")

    def pending() -> set[str]:
        rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
        return {r["name"] for r in rules for a in r.get("alerts", ()) if a["labels"].get("run_id") == run_id}

    wait_until(lambda: {"TrainingTargetDown", "TrainingRunVanished"} <= pending(), "the alerts are on their way")
    with attach(runs, name="next") as run:
        wait_until(lambda: {path.stem for path in (runs / "targets").iterdir()} == {run.id}, "its file is removed")
        wait_until(lambda: not prometheus.query(f'up{{run_id="{run_id}"}}'), "the target is gone")
        assert "TrainingRunVanished" in pending()


def test_who_listens_at_the_port_of_a_killed_run_speaks_for_no_other(prometheus: Prometheus, runs: Path) -> None:
    """Whatever run, job and instance an answer names, what it says is stored as said by the target that was asked."""
    lie = 'training_loss_ema{run_id="another-000001",job="other",instance="there",optimizer="adam"} 7\n'

    def squat(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain; version=0.0.4"), ("Content-Length", str(len(lie)))])
        return [lie.encode()]

    target = runs / "targets" / "killed-00beef.json"
    with HttpServer(squat, port=0) as squatter:
        address = squatter.url.partition("//")[2]
        target.write_text(json.dumps([{"targets": [address], "labels": {"run_name": "killed"}}]))
        wait_until(lambda: is_up(prometheus, "killed-00beef") == 1, "the port is scraped")
        (found,) = prometheus.query('training_loss_ema{optimizer="adam"} == 7')
    target.unlink()
    stored = {name: found["metric"][name] for name in ("run_id", "job", "instance")}
    assert stored == {"run_id": "killed-00beef", "job": "training", "instance": address}
    assert "exported_run_id" not in found["metric"]
