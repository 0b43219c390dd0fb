"""The services of docker-compose.yml: what the file promises, and the secrets that are made for it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from monitor.alerts import render_files
from tests.requirements import need, need_module

ROOT = Path(__file__).resolve().parents[2]
SERVERS = ("prometheus", "alertmanager", "grafana")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """Return the file as docker-compose reads it."""
    need_module("yaml")
    import yaml

    environment = {**os.environ, "MONITOR_TARGETS": "/srv/runs/targets"}
    command = [need("docker-compose"), "--file", str(ROOT / "docker-compose.yml"), "config"]
    subprocess.run([*command, "-q"], check=True, env=environment, capture_output=True)
    done = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
    return dict(yaml.safe_load(done.stdout))


def read_in(folder: Path) -> dict[str, Any]:
    """Return the file as docker-compose reads it in another folder, where .env is all that is set."""
    need_module("yaml")
    import yaml

    shutil.copy(ROOT / "docker-compose.yml", folder)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MONITOR_", "XDG_"))}
    command = [need("docker-compose"), "--project-directory", str(folder), "config"]
    done = subprocess.run(
        command, env={**environment, "HOME": "/home/me"}, cwd=folder, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return dict(yaml.safe_load(done.stdout))


def test_a_fresh_clone_is_read_and_names_what_is_missing(tmp_path: Path) -> None:
    """The file is in order before anything is set; the path of the secrets that Docker will not find is the cure."""
    found = read_in(tmp_path)
    folder = tmp_path / "run-make-stack-up-first"
    assert {each["file"] for each in found["secrets"].values()} == {str(folder / name) for name in found["secrets"]}
    assert not (ROOT / folder.name).exists()


def test_by_default_targets_are_where_runs_write_them(tmp_path: Path) -> None:
    """The folder that Prometheus reads is that of a user on Linux who has set nothing, as the runs find it."""
    (volume,) = (v for v in read_in(tmp_path)["services"]["prometheus"]["volumes"] if "/etc/prometheus/targets" in v)
    code = "from monitor.store import runs_directory; print(runs_directory())"
    environment = {"HOME": "/home/me", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    if sys.platform == "linux":
        assert volume == f"{done.stdout.strip()}/targets:/etc/prometheus/targets:ro"


def test_what_the_first_start_sets_is_what_is_mounted(tmp_path: Path) -> None:
    """After the secrets are made, every one of them is a file at the place that the services are given."""
    Machine(tmp_path).stack("secrets")
    found = read_in(tmp_path)
    assert all(Path(each["file"]).is_file() for each in found["secrets"].values())
    assert f"{tmp_path / 'runs' / 'targets'}:/etc/prometheus/targets:ro" in found["services"]["prometheus"]["volumes"]


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_is_pinned_healthy_and_confined(compose: dict[str, Any], name: str) -> None:
    """Each server has an exact version, a health check, no root, no capability, and is seen from this machine only."""
    service = compose["services"][name]
    image, _, version = service["image"].rpartition(":")
    assert image
    assert version.lstrip("v").count(".") == 2
    assert service["healthcheck"]["test"][0] == "CMD"
    assert service["user"].partition(":")[0] not in ("", "0", "root")
    assert service["cap_drop"] == ["ALL"]
    assert service["ports"]
    assert all(str(port).startswith("127.0.0.1:") for port in service["ports"])
    assert any(entry.endswith("host-gateway") for entry in _as_list(service["extra_hosts"]))


@pytest.mark.parametrize("name", SERVERS)
def test_configuration_is_mounted_read_only_and_exists(compose: dict[str, Any], name: str) -> None:
    """Every file or folder of this repository that a server mounts is there, and cannot be written from within."""
    for volume in compose["services"][name]["volumes"]:
        source, _, rest = str(volume).partition(":")
        if source.startswith(str(ROOT)):
            assert Path(source).exists(), source
        if source.startswith("/"):
            assert rest.endswith(":ro"), volume
        else:
            assert source in compose["volumes"]


def test_no_server_can_be_stopped_or_reloaded_over_http(compose: dict[str, Any]) -> None:
    """Prometheus is published without a login, so it takes no orders."""
    assert not [word for word in compose["services"]["prometheus"]["command"] if word.startswith("--web.enable")]


def test_servers_wait_for_each_other(compose: dict[str, Any]) -> None:
    """Grafana starts when Prometheus is healthy, Prometheus when Alertmanager is."""
    services = compose["services"]
    assert services["grafana"]["depends_on"] == {"prometheus": {"condition": "service_healthy"}}
    assert services["prometheus"]["depends_on"] == {"alertmanager": {"condition": "service_healthy"}}


def test_grafana_lets_nobody_in_and_calls_nobody(compose: dict[str, Any]) -> None:
    """Anonymous access, sign-up, analytics and update checks are off; the password is a file."""
    environment = compose["services"]["grafana"]["environment"]
    off = [name for name in environment if name.startswith(("GF_ANALYTICS_", "GF_AUTH_", "GF_USERS_", "GF_NEWS_"))]
    assert len(off) == 7
    assert all(environment[name] == "false" for name in off)
    assert environment["GF_SECURITY_ADMIN_PASSWORD__FILE"] == "/run/secrets/grafana_admin_password"
    assert not any(name.endswith("PASSWORD") for name in environment)


def test_mounts_and_settings_meet(compose: dict[str, Any]) -> None:
    """Where the dashboards are mounted is where the provisioning looks; the data source is where Prometheus answers."""
    provider = (ROOT / "dashboards/grafana/provisioning/dashboards/training.yml").read_text()
    source = (ROOT / "dashboards/grafana/provisioning/datasources/prometheus.yml").read_text()
    config = (ROOT / "dashboards/prometheus/prometheus.yml").read_text()
    grafana = compose["services"]["grafana"]
    places = [str(volume).split(":")[1] for volume in grafana["volumes"]]
    assert any(f"path: {place}\n" in provider for place in places)
    assert grafana["environment"]["PROMETHEUS_URL"] == "http://prometheus:9090"
    assert "url: $PROMETHEUS_URL" in source
    (interval,) = [line.split()[1] for line in source.splitlines() if "timeInterval:" in line]
    assert f"scrape_interval: {interval}\n" in config
    targets = [str(volume).split(":")[1] for volume in compose["services"]["prometheus"]["volumes"]]
    assert {"/etc/prometheus/targets", "/etc/prometheus/train"} <= set(targets)
    assert '"targets/*.json", "train/targets/*.json"' in config


def test_secrets_are_made_once_and_kept_from_others(tmp_path: Path) -> None:
    """The first start makes long random secrets in a folder of the owner's alone; the next one keeps them."""
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
        "MONITOR_DIR": str(tmp_path / "runs"),
    }
    command = [need("bash"), str(tmp_path / ".ci" / "stack"), "secrets"]
    subprocess.run(command, check=True, env=environment, timeout=300)
    made = tmp_path / ".docker"
    before = {path.name: path.read_text() for path in made.iterdir()}
    assert set(before) == {"grafana_admin_password", "monitor_alert_token", "monitor_read_token", "run.env"}
    assert made.stat().st_mode & 0o777 == 0o700
    assert (made / "run.env").stat().st_mode & 0o777 == 0o600
    secrets = [before[name] for name in before if name != "run.env"]
    assert len(set(secrets)) == 3
    assert all(len(secret) == 48 for secret in secrets)
    settings = f"MONITOR_TARGETS={tmp_path / 'runs' / 'targets'}\nMONITOR_SECRETS=./.docker\n"
    assert (tmp_path / ".env").read_text() == settings
    assert f"MONITOR_ALERT_TOKEN={before['monitor_alert_token']}\n" in before["run.env"]
    subprocess.run(command, check=True, env=environment, timeout=300)
    assert {path.name: path.read_text() for path in made.iterdir()} == before


PRETENDED = """\
#!/bin/sh
# A docker that {system} and whose bridge has the address {bridge}; containers {reach} this machine.
echo "docker $*" >>"$CALLS"
case "$*" in
  "compose version") ;;
  "info --format"*) echo "{system}" ;;
  "network inspect"*) echo "{bridge}" ;;
  *" wget "*)
    for last; do :; done
    [ {reach} = reach ] && exec "{python}" -c 'import sys, urllib.request
url = sys.argv[1].replace("host.docker.internal", "127.0.0.1")
assert urllib.request.urlopen(url, timeout=60).status == 200' "$last"
    exit 1 ;;
esac
"""


class Machine:
    """A copy of .ci on a machine with another kernel, docker and curl; ``stack`` runs the script there."""

    def __init__(self, folder: Path, *, kernel: str = "Linux", curl: str = "exit 0", **docker: str) -> None:
        self.folder = folder
        shutil.copytree(ROOT / ".ci", folder / ".ci")
        given = {"system": "Debian GNU/Linux 13", "bridge": "127.0.0.1", "reach": "reach", "python": sys.executable}
        programs = {"docker": PRETENDED.format(**{**given, **docker}), "curl": f"#!/bin/sh\n{curl}\n"}
        (folder / "bin").mkdir()
        for name, text in {**programs, "uname": f"#!/bin/sh\necho {kernel}\n"}.items():
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("MONITOR_")},
            "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "CALLS": str(folder / "calls"),
            "PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT),
            "MONITOR_DIR": str(folder / "runs"),
            "STACK_PATIENCE": "1",
        }

    def stack(self, verb: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [need("bash"), str(self.folder / ".ci" / "stack"), verb]
        environment = {**self.environment, **environment}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)

    def run_environment(self) -> dict[str, str]:
        """Return what .docker/run.env sets, as a shell reads it."""
        command = [need("bash"), "-c", f"set -a; . '{self.folder}/.docker/run.env'; exec env -0"]
        done = subprocess.run(command, env={}, capture_output=True, text=True, check=True)
        pairs = (entry.partition("=") for entry in done.stdout.split("\0"))
        return {name: value for name, _, value in pairs if name.startswith("MONITOR_")}


@pytest.mark.parametrize(
    ("docker", "expected"),
    [
        ({}, {"MONITOR_HOST": "127.0.0.1"}),
        ({"kernel": "Darwin"}, {"MONITOR_HOSTS": "host.docker.internal"}),
        ({"system": "Docker Desktop"}, {"MONITOR_HOSTS": "host.docker.internal"}),
    ],
    ids=["linux", "macos", "desktop-on-linux"],
)
def test_a_run_listens_where_containers_reach_it(
    tmp_path: Path, docker: dict[str, str], expected: dict[str, str]
) -> None:
    """On Linux runs listen on Docker's bridge; Docker Desktop reaches loopback, under a name that has to be served."""
    machine = Machine(tmp_path, **docker)
    assert machine.stack("secrets").stderr == ""
    found = machine.run_environment()
    assert {name: found[name] for name in found if name.startswith("MONITOR_HOST")} == expected
    assert found["MONITOR_DIR"] == str(tmp_path / "runs")
    assert found["MONITOR_READ_TOKEN"] == (tmp_path / ".docker" / "monitor_read_token").read_text()


def test_a_bridge_that_this_machine_does_not_have_is_told(tmp_path: Path) -> None:
    """A rootless Docker's bridge is no address to listen on: no run is sent there, and the message says so."""
    machine = Machine(tmp_path, bridge="192.0.2.1")
    assert "(192.0.2.1) is no address of this machine" in machine.stack("secrets").stderr
    assert "MONITOR_HOST" not in machine.run_environment()
    assert machine.stack("secrets", MONITOR_HOST="127.0.0.2").stderr == ""
    assert machine.run_environment()["MONITOR_HOST"] == "127.0.0.2"


def test_settings_of_the_owner_are_kept(tmp_path: Path) -> None:
    """What else stands in .env stays there, and the folder of the targets is in it once."""
    machine = Machine(tmp_path)
    (tmp_path / ".env").write_text("GRAFANA_PORT=3001\nMONITOR_TARGETS=/old\n")
    for _ in range(2):
        machine.stack("secrets")
    settings = f"MONITOR_TARGETS={tmp_path / 'runs' / 'targets'}\nMONITOR_SECRETS=./.docker\n"
    assert (tmp_path / ".env").read_text() == f"GRAFANA_PORT=3001\n{settings}"


def test_a_runbook_is_where_the_alerts_link_to(tmp_path: Path) -> None:
    """Given an address the mounted rules are ours with links to it, for every reader; without, the shipped ones."""
    machine = Machine(tmp_path)
    assert machine.stack("secrets", RUNBOOK="https://wiki.example.org/a.md").stderr == ""
    assert rules_of(tmp_path) == tmp_path / ".docker" / "rules"
    assert {path.name: path.read_text() for path in rules_of(tmp_path).iterdir()} == dict(
        render_files("https://wiki.example.org/a.md")
    )
    assert '"https://wiki.example.org/a.md#trainingdivergence"' in (rules_of(tmp_path) / "alerts.yml").read_text()
    modes = [path.stat().st_mode & 0o777 for path in (rules_of(tmp_path), *sorted(rules_of(tmp_path).iterdir()))]
    assert modes == [0o755, 0o644, 0o644]
    machine.stack("secrets")
    assert rules_of(tmp_path) == tmp_path / "dashboards" / "prometheus" / "rules"


def rules_of(folder: Path) -> Path:
    """Return the folder that Prometheus has its rules from."""
    volumes = read_in(folder)["services"]["prometheus"]["volumes"]
    (found,) = (volume.partition(":")[0] for volume in volumes if "/etc/prometheus/rules" in volume)
    return Path(found)


def test_the_start_tries_the_way_back(tmp_path: Path) -> None:
    """Once all is up a container asks for an address on this machine; nothing is said where it gets an answer."""
    machine = Machine(tmp_path)
    done = machine.stack("up")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Grafana: http://127.0.0.1:3000" in done.stdout
    calls = (tmp_path / "calls").read_text()
    assert "docker compose up -d\n" in calls
    assert "docker compose exec -T prometheus wget" in calls


def test_a_firewall_in_between_is_told(tmp_path: Path) -> None:
    """Where the container gets no answer the start says which address is out of reach, and continues."""
    done = Machine(tmp_path, reach="miss").stack("up")
    assert done.returncode == 0
    assert "Containers do not reach 127.0.0.1 on this machine" in done.stderr


def test_a_grafana_that_does_not_start_is_told(tmp_path: Path) -> None:
    """When Grafana does not become healthy the start fails, with what to look at."""
    done = Machine(tmp_path, curl="exit 7").stack("up")
    assert done.returncode == 1
    assert "Grafana does not answer at http://127.0.0.1:3000; look at: docker compose logs" in done.stderr


def test_the_image_is_built_from_what_it_copies_alone() -> None:
    """Neither the secrets nor an environment go to the builder; what the Dockerfile copies does, and exists."""
    docker = (ROOT / "dashboards" / "train.Dockerfile").read_text()
    copied = {word for line in re.findall(r"^COPY (.+) \S+$", docker, re.MULTILINE) for word in line.split()}
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert ignored[0] == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == copied
    assert all((ROOT / name).exists() for name in copied)


def test_the_scripts_run_on_an_old_shell() -> None:
    """What make needs on macOS keeps to plain sh, or to what bash 3.2 knows."""
    subprocess.run([need("sh"), "-n", str(ROOT / ".ci" / "programs")], check=True)
    assert (ROOT / ".ci" / "programs").read_text().startswith("#!/bin/sh\n")
    for path in (ROOT / ".ci").iterdir():
        newer = re.findall(r"declare -A|mapfile|readarray|\$\{\w+[,^]|&>>|\|&|coproc|wait -n", path.read_text())
        assert not newer, f"{path.name}: {newer}"


def _as_list(value: Any) -> list[str]:
    return [f"{name}:{address}" for name, address in value.items()] if isinstance(value, dict) else list(value)
