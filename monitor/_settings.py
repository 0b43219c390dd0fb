"""Run settings: defaults, validation, environment variables. An argument beats the environment, that the default."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from itertools import combinations
from pathlib import Path
from typing import Any

from monitor._checks import check_flag, check_number, check_whole, is_token, is_whole

AUTO = "auto"
"""The ``resume`` that looks for the run by itself."""
MIN_STORE_BYTES = 2 * 2**20
"""The least size with which a run store has room for what it always keeps."""

SECRETS = ("token", "read_token", "alert_token")
"""What is neither kept with the run nor left in the environment of the watcher."""
_MAX_SECRET_BYTES = 2**13


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Hold the settings of one run, checked on construction.

    Every field can be given to ``monitor.attach`` by name, or (those that are plain values) through the environment
    as ``MONITOR_`` and its name in capitals: ``MONITOR_PORT=9500``. An empty variable counts as not set.

    Example:
        >>> Settings(port=9500).port
        9500

    Raises:
        ValueError: for a value that cannot be, with the value and the cure.
        TypeError: for a value of a wrong type.
    """

    name: str | None = field(
        default=None,
        metadata={"doc": "Run name; default: the script's name, or its folder's for one such as train.py."},
    )
    total_steps: int | None = field(
        default=None,
        metadata={
            "doc": "Planned steps, for progress and time left; of several optimizers those of the first, as run.step "
            "counts."
        },
    )
    host: str = field(
        default="127.0.0.1", metadata={"doc": "Address to bind. Anything else than loopback is seen by others."}
    )
    port: int | None = field(default=None, metadata={"doc": "Port to bind; default: 9477 or the next free one."})
    token: str | None = field(
        default=None, metadata={"doc": "Control token; default: made, kept 0600 in the run folder."}
    )
    read_token: str | None = field(
        default=None, metadata={"doc": "Token that may look but not change anything; default: made, kept likewise."}
    )
    alert_token: str | None = field(
        default=None,
        metadata={"doc": "Token that may only hand in alerts, for Alertmanager; default: made, kept likewise."},
    )
    certfile: str | None = field(default=None, metadata={"doc": "TLS certificate (PEM)."})
    keyfile: str | None = field(default=None, metadata={"doc": "TLS private key (PEM)."})
    client_cafile: str | None = field(
        default=None, metadata={"doc": "CA that client certificates must come from (PEM)."}
    )
    protect_metrics: bool = field(default=False, metadata={"doc": "Ask for the token at /metrics and /healthz too."})
    hosts: tuple[str, ...] = field(
        default=(),
        metadata={
            "doc": "Further Host headers to serve, such as a reverse proxy's; comma-separated in the environment."
        },
    )
    serve: bool = field(default=True, metadata={"doc": "Serve HTTP at all."})
    directory: str | None = field(
        default=None,
        metadata={"doc": "Folder of the run folders; default: $MONITOR_DIR, else the user's data folder."},
    )
    gradient_norm: str | int = field(
        default="auto",
        metadata={
            "doc": '"auto": at every step unless that would cost more than the budget; N: every N-th step; "off".'
        },
    )
    overhead_budget: float = field(
        default=0.01, metadata={"doc": 'Share of the step time that gradient_norm="auto" may use (ratio).'}
    )
    window: int = field(default=128, metadata={"doc": "Steps in the trailing windows."})
    min_lr: float = field(default=0.0, metadata={"doc": "Floor on the applied LR of a reduced param group."})
    allow_increase: bool = field(default=False, metadata={"doc": "Accept LR factors above 1."})
    command_timeout: float = field(
        default=600.0, metadata={"doc": "Seconds after which a command that no step has taken expires."}
    )
    stop_raises: bool = field(
        default=False, metadata={"doc": "A stop raises monitor.StopTraining at the next step boundary."}
    )
    gpu: bool = field(default=True, metadata={"doc": "Read the GPUs through NVML."})
    system_interval: float = field(default=2.0, metadata={"doc": "Seconds between host and GPU readings."})
    stall_timeout: float = field(
        default=600.0, metadata={"doc": "Seconds without a step after which a run counts as stalled, at most."}
    )
    false_alarms_per_100k_steps: float = field(
        default=1.0,
        metadata={
            "doc": "Rate at which the noise of the run itself may raise a spike; measured truth: docs/detection.md."
        },
    )
    expected_initial_loss: float | None = field(
        default=None,
        metadata={
            "doc": "Loss of a model that only guesses (ln of the number of classes), where the loss function does not "
            "tell it."
        },
    )
    store_bytes: int = field(
        default=64 * 2**20,
        metadata={"doc": "Size of the run store, in which curves, events and commands stay on disk; 0: none is kept."},
    )
    keep_runs: int = field(
        default=200, metadata={"doc": "Run folders kept; at the start of a run the oldest that ended go."}
    )
    keep_bytes: int = field(
        default=2**32,
        metadata={"doc": "Size of all run folders together; at the start of a run the oldest that ended go."},
    )
    keep_days: float | None = field(
        default=None,
        metadata={"doc": "Days after their last session began that ended runs are kept; default: no limit."},
    )
    resume: str | None = field(
        default=None,
        metadata={
            "doc": 'Earlier run to continue: its id, or "auto": the newest of this name that was cut short, if the '
            "optimizer holds the state of a checkpoint."
        },
    )
    watcher: str = field(
        default="process",
        metadata={"doc": '"process": records and serves in a process of its own; "thread": on threads of this one.'},
    )
    linger: float = field(
        default=60.0,
        metadata={"doc": "Seconds that the watcher process stays after the end for one more scrape; delays no script."},
    )
    wait_for_scrape: float = field(
        default=0.0,
        metadata={"doc": "Seconds that the script itself waits at its end for one more scrape, if it was scraped."},
    )
    on_sigterm: str | None = field(
        default=None,
        metadata={"doc": '"interrupt": SIGTERM ends the script in order, after the handler that was there.'},
    )
    digest_interval: float = field(default=0.25, metadata={"doc": "Seconds between two rounds of the recorder thread."})

    def __post_init__(self) -> None:
        for f in fields(self):
            check = _CHECKS.get(f.name)
            if check is not None:
                check(f.name, getattr(self, f.name))
        if (self.certfile is None) != (self.keyfile is None):
            raise ValueError(
                f"certfile and keyfile go together, got certfile={self.certfile!r} and keyfile={self.keyfile!r}; "
                "give both for TLS or none"
            )
        if self.client_cafile is not None and self.certfile is None:
            raise ValueError(f"client_cafile={self.client_cafile!r} needs TLS; give certfile and keyfile too")
        check_tokens(self.token, self.read_token, self.alert_token)


def resolve(given: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> Settings:
    """Merge what was given to ``attach`` with the environment and the defaults.

    Example:
        >>> resolve({"window": 64}, {"MONITOR_WINDOW": "32", "MONITOR_PORT": "9500"}).port
        9500

    Raises:
        ValueError, TypeError: as :class:`Settings`; for an environment variable the message names it.
    """
    values = {k: v for k, v in given.items() if v is not None}
    if isinstance(values.get("hosts"), list):
        values["hosts"] = tuple(values["hosts"])
    for f in fields(Settings):
        if f.name in values:
            continue
        text = secret_from(environ, f.name) if f.name in SECRETS else environ.get(variable_of(f.name), "")
        if text:
            values[f.name] = _from_variable(f.name, str(f.type), text)
    return Settings(**values)


def _from_variable(name: str, type_: str, text: str) -> Any:
    """Read a setting from its variable and check it here, where a refusal can say where the value came from."""
    value = _parse(name, type_, text)
    try:
        _CHECKS.get(name, _anything)(name, value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{variable_of(name)}: {error}") from None
    return value


def secret_from(environ: Mapping[str, str], name: str) -> str:
    """Return a token from its variable, or from the file that the same with ``_FILE`` names; "" where neither is set.

    >>> secret_from({"MONITOR_TOKEN": "0123456789abcdef"}, "token")
    '0123456789abcdef'

    Raises:
        ValueError: both are set, or the file cannot be read, is empty or no short text.
    """
    variable = variable_of(name)
    text, path = environ.get(variable, ""), environ.get(f"{variable}_FILE", "")
    if text and path:
        raise ValueError(f"{variable} and {variable}_FILE are both set; keep one")
    return read_secret(path, f"{variable}_FILE") if path else text


def read_secret(path: str, name: str) -> str:
    """Return the token in a file, without blanks around it; ``name`` is what the error calls the file.

    Raises ValueError.
    """
    try:
        found = Path(path)
        content = found.read_bytes() if found.is_file() and found.stat().st_size <= _MAX_SECRET_BYTES else b""
        text = content.decode().strip()
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}={path!r} cannot be read ({error}); name a file that holds the token") from None
    if not text:
        raise ValueError(f"{name}={path!r} must be a file of at most {_MAX_SECRET_BYTES:,} bytes that holds the token")
    return text


def _anything(_name: str, _value: Any) -> None:
    """Refuse nothing."""


def variable_of(name: str) -> str:
    """Return the environment variable of a setting: ``port`` -> ``MONITOR_PORT``."""
    return "MONITOR_DIR" if name == "directory" else f"MONITOR_{name.upper()}"


def is_disabled(environ: Mapping[str, str] = os.environ) -> bool:
    """Tell whether ``MONITOR_DISABLED`` asks for a run that does nothing."""
    return environ.get("MONITOR_DISABLED", "").strip().lower() in ("1", "true", "yes", "on")


def _parse(name: str, type_: str, text: str) -> Any:
    try:
        if name == "gradient_norm":
            return int(text) if text.isdigit() else text
        if type_.startswith("bool"):
            return {
                "1": True,
                "true": True,
                "yes": True,
                "on": True,
                "0": False,
                "false": False,
                "no": False,
                "off": False,
            }[text.strip().lower()]
        if type_.startswith("int"):
            return int(text)
        if type_.startswith("float"):
            return float(text)
        if type_.startswith("tuple"):
            return tuple(part.strip() for part in text.split(",") if part.strip())
    except (KeyError, ValueError):
        raise ValueError(f"{variable_of(name)}={text!r} is not a valid {type_.split(' ')[0]} for {name}") from None
    return text


def _number(low: float, words: str, *, strict: bool = False, high: float = math.inf) -> Callable[[str, Any], None]:
    def check(name: str, value: Any) -> None:
        check_number(name, value, words, lambda v: (low < v if strict else low <= v) and v <= high)

    return check


def _integer(low: int, words: str, *, high: float = math.inf) -> Callable[[str, Any], None]:
    def check(name: str, value: Any) -> None:
        if value is None and name in ("port", "total_steps"):
            return
        check_whole(name, value, words, lambda v: low <= v <= high)

    return check


def _expected_loss(name: str, value: Any) -> None:
    if value is not None:
        check_number(name, value, "a finite number", math.isfinite)


def _text(name: str, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise TypeError(f"{name} must be a string, got {value!r}")
    if not str(value).strip():
        raise ValueError(f"{name} must not be empty; leave it out for the default")


def _names(name: str, value: Any) -> None:
    if not isinstance(value, tuple) or not all(isinstance(one, str) and one for one in value):
        raise TypeError(f"{name} must be a tuple of host names, got {value!r}")


def _token(name: str, value: Any) -> None:
    _text(name, value)
    if value is None:
        return
    check_token(name, str(value))
    if len(value) < 16:
        raise ValueError(f"{name} must have 16 characters or more, got {len(value)}; leave it out to have one made")


def check_token(name: str, value: str) -> None:
    """Raise ValueError for a token that cannot be sent in a header."""
    if not is_token(value):
        raise ValueError(f"{name} must be printable ASCII without spaces, as it travels in a header")


def check_tokens(token: str | None, read_token: str | None, alert_token: str | None) -> None:
    """Raise ValueError for a token that would allow more than it is for, as it is another one too."""
    given = {name: value for name, value in zip(SECRETS, (token, read_token, alert_token), strict=True) if value}
    for one, other in combinations(given, 2):
        if given[one] == given[other]:
            raise ValueError(f"{one} and {other} must differ; each allows something else")


def _file(name: str, value: Any) -> None:
    _text(name, value)
    if value is not None and not Path(value).is_file():
        raise ValueError(f"{name} must be a readable file, got {str(value)!r}")


def _gradient_norm(name: str, value: Any) -> None:
    is_stride = is_whole(value) and value >= 1
    if not is_stride and value not in ("auto", "off"):
        raise ValueError(f'{name} must be "auto", "off" or an int N >= 1 (every N-th step), got {value!r}')


def _store_bytes(name: str, value: Any) -> None:
    if value != 0 or not is_whole(value):
        check_whole(name, value, f"0 (no store) or {MIN_STORE_BYTES} or more", lambda size: size >= MIN_STORE_BYTES)


def _keep_days(name: str, value: Any) -> None:
    if value is not None:
        check_number(name, value, "above 0 days, or None (no limit)", lambda days: days > 0)


def _on_sigterm(name: str, value: Any) -> None:
    if value not in (None, "interrupt"):
        raise ValueError(f'{name} must be "interrupt" or None, got {value!r}')


def _resume(name: str, value: Any) -> None:
    _text(name, value)
    if value is not None and value != AUTO and not is_run_id(value):
        raise ValueError(
            f'{name} must be "auto" or a run id such as "digits-3f9a0c", got {value!r}; `monitor runs` lists the ids'
        )


def is_run_id(value: object) -> bool:
    """Tell whether something has the form of a run id, which is the name of its folder."""
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", value) is not None


def _watcher(name: str, value: Any) -> None:
    if value not in ("process", "thread"):
        raise ValueError(f'{name} must be "process" or "thread", got {value!r}')


_CHECKS: dict[str, Callable[[str, Any], None]] = {
    "name": _text,
    "total_steps": _integer(1, "1 or more"),
    "host": _text,
    "port": _integer(0, "between 0 (any free one) and 65535", high=65535),
    "token": _token,
    "read_token": _token,
    "alert_token": _token,
    "certfile": _file,
    "keyfile": _file,
    "client_cafile": _file,
    "protect_metrics": check_flag,
    "hosts": _names,
    "serve": check_flag,
    "directory": _text,
    "gradient_norm": _gradient_norm,
    "overhead_budget": _number(0, "in (0, 1]", strict=True, high=1),
    "window": _integer(2, "between 2 and 65536", high=65536),
    "min_lr": _number(0, "0 or more"),
    "allow_increase": check_flag,
    "command_timeout": _number(0, "above 0 seconds", strict=True),
    "stop_raises": check_flag,
    "gpu": check_flag,
    "system_interval": _number(0.1, "0.1 seconds or more"),
    "stall_timeout": _number(0, "above 0 seconds", strict=True),
    "false_alarms_per_100k_steps": _number(0, "above 0 and at most 1000", strict=True, high=1000),
    "expected_initial_loss": _expected_loss,
    "store_bytes": _store_bytes,
    "keep_runs": _integer(1, "1 or more"),
    "keep_bytes": _integer(MIN_STORE_BYTES, f"{MIN_STORE_BYTES} or more"),
    "keep_days": _keep_days,
    "resume": _resume,
    "watcher": _watcher,
    "on_sigterm": _on_sigterm,
    "linger": _number(0, "0 seconds or more"),
    "wait_for_scrape": _number(0, "0 seconds or more"),
    "digest_interval": _number(0.01, "between 0.01 and 5 seconds", high=5),
}
