"""Settings are checked on construction; argument beats environment beats default."""

from __future__ import annotations

import inspect
import math
import re
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from monitor import attach
from monitor._settings import Settings, is_disabled, resolve, variable_of

TOKEN = "0123456789abcdef"


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"port": -1}, ValueError, "port must be between 0 (any free one) and 65535, got -1"),
        ({"port": 70000}, ValueError, "port must be between 0 (any free one) and 65535, got 70000"),
        ({"port": "9477"}, TypeError, "port must be an int, got '9477'"),
        ({"port": True}, TypeError, "port must be an int, got True"),
        ({"total_steps": 0}, ValueError, "total_steps must be 1 or more, got 0"),
        ({"window": 1}, ValueError, "window must be between 2 and 65536, got 1"),
        ({"gradient_norm": "on"}, ValueError, 'gradient_norm must be "auto", "off" or an int N >= 1'),
        ({"gradient_norm": 0}, ValueError, 'gradient_norm must be "auto", "off" or an int N >= 1'),
        ({"overhead_budget": 0}, ValueError, "overhead_budget must be in (0, 1], got 0"),
        ({"min_lr": math.nan}, ValueError, "min_lr must be 0 or more, got nan"),
        ({"min_lr": "a"}, TypeError, "min_lr must be a number, got 'a'"),
        ({"linger": 10**400}, ValueError, "linger must be 0 seconds or more, got 1000"),
        ({"linger": -1}, ValueError, "linger must be 0 seconds or more, got -1"),
        ({"command_timeout": math.inf}, ValueError, "command_timeout must be above 0 seconds, got inf"),
        ({"serve": 1}, TypeError, "serve must be True or False, got 1"),
        ({"name": " "}, ValueError, "name must not be empty"),
        ({"name": 3}, TypeError, "name must be a string, got 3"),
        ({"token": "short"}, ValueError, "token must have 16 characters or more, got 5"),
        ({"token": "0123456789 abcdef"}, ValueError, "token must be printable ASCII without spaces"),
        ({"token": TOKEN, "read_token": TOKEN}, ValueError, "token and read_token must differ"),
        ({"certfile": "/nowhere.pem"}, ValueError, "certfile must be a readable file, got '/nowhere.pem'"),
        ({"certfile": __file__}, ValueError, "certfile and keyfile go together"),
        ({"client_cafile": __file__}, ValueError, "needs TLS; give certfile and keyfile too"),
        ({"hosts": "a.example"}, TypeError, "hosts must be a tuple of host names, got 'a.example'"),
    ],
)
def test_a_refusal_names_the_value_and_the_cure(given: dict[str, Any], kind: type[Exception], message: str) -> None:
    """What cannot be is refused on construction."""
    with pytest.raises(kind) as caught:
        resolve(given, {})
    assert message in str(caught.value)


def test_argument_beats_environment_beats_default() -> None:
    """Each setting has a variable; an empty one counts as not set."""
    environ = {"MONITOR_PORT": "9500", "MONITOR_WINDOW": "64", "MONITOR_LINGER": "", "MONITOR_HOSTS": "a.example, b"}
    settings = resolve({"window": 32, "name": None}, environ)
    assert (settings.port, settings.window, settings.linger) == (9500, 32, Settings().linger)
    assert settings.hosts == ("a.example", "b")


def test_hosts_may_be_a_list() -> None:
    """A list of host names is taken as the tuple that the settings keep; one that holds something else is refused."""
    assert resolve({"hosts": ["a.example", "b.example"]}, {}).hosts == ("a.example", "b.example")
    with pytest.raises(TypeError, match=r"hosts must be a tuple of host names, got \('a.example', 3\)"):
        resolve({"hosts": ["a.example", 3]}, {})


@pytest.mark.parametrize(
    ("variable", "text", "name", "value"),
    [
        ("MONITOR_SERVE", "off", "serve", False),
        ("MONITOR_GPU", "0", "gpu", False),
        ("MONITOR_PROTECT_METRICS", "Yes", "protect_metrics", True),
        ("MONITOR_GRADIENT_NORM", "10", "gradient_norm", 10),
        ("MONITOR_GRADIENT_NORM", "off", "gradient_norm", "off"),
        ("MONITOR_MIN_LR", "1e-6", "min_lr", 1e-6),
        ("MONITOR_TOTAL_STEPS", "100", "total_steps", 100),
        ("MONITOR_DIR", "/some/where", "directory", "/some/where"),
    ],
)
def test_variables_are_parsed(variable: str, text: str, name: str, value: Any) -> None:
    """The environment speaks text; settings have their own types."""
    assert getattr(resolve({}, {variable: text}), name) == value


@pytest.mark.parametrize("variable", ["MONITOR_PORT", "MONITOR_SERVE", "MONITOR_LINGER"])
def test_a_variable_that_cannot_be_read_is_named(variable: str) -> None:
    """The message names the variable, its value and the type that it should have."""
    with pytest.raises(ValueError, match=rf"{variable}='x y' is not a valid (int|bool|float) for"):
        resolve({}, {variable: "x y"})


def test_every_setting_has_a_variable_and_a_description() -> None:
    """Nothing is settable without being told."""
    names = [variable_of(f.name) for f in fields(Settings)]
    assert len(set(names)) == len(names)
    assert all(f.metadata["doc"].endswith((".", "?")) for f in fields(Settings))


@pytest.mark.parametrize(("text", "expected"), [("1", True), ("true", True), ("0", False), ("", False)])
def test_disabled(text: str, expected: bool) -> None:
    """MONITOR_DISABLED=1 turns everything off."""
    assert is_disabled({"MONITOR_DISABLED": text}) is expected


def test_attach_takes_each_setting_by_name() -> None:
    """Names and order are those of Settings; None, the default of each, leaves it to the environment."""
    taken = list(inspect.signature(attach).parameters.values())
    first = [parameter.name for parameter in taken].index("name")
    settings, unknown = taken[first:-1], taken[-1]
    assert [parameter.name for parameter in settings] == [f.name for f in fields(Settings)]
    assert {(parameter.kind, parameter.default) for parameter in settings} == {(inspect.Parameter.KEYWORD_ONLY, None)}
    assert unknown.kind is inspect.Parameter.VAR_KEYWORD


def test_attach_takes_the_types_of_the_settings() -> None:
    """Each is typed as its field, or None; hosts may also be a list."""
    taken, own = get_type_hints(attach), get_type_hints(Settings)
    differing = {f.name for f in fields(Settings) if taken[f.name] != own[f.name] | None}
    assert differing == {"hosts"}


def test_the_docstring_of_attach_describes_each_setting() -> None:
    """Editors show the meaning and the default of each as Settings has them."""
    described = re.sub(r"\s+", " ", attach.__doc__ or "")
    expected = {
        f.name: f"{f.name}: {f.metadata['doc']}" + ("" if f.default is None else f" Default: {f.default!r}.")
        for f in fields(Settings)
    }
    assert [text for text in expected.values() if f" {text} " not in described] == []


class TestSecretsInFiles:
    """A token may be in a file that a variable names, as Docker and Kubernetes mount secrets."""

    def test_the_file_holds_it(self, tmp_path: Path) -> None:
        """Blanks around it do not count; each token has its own variable."""
        (tmp_path / "a").write_text(f"{TOKEN}\n")
        (tmp_path / "b").write_text(f" {TOKEN[::-1]}")
        found = resolve(
            {}, {"MONITOR_TOKEN_FILE": str(tmp_path / "a"), "MONITOR_ALERT_TOKEN_FILE": str(tmp_path / "b")}
        )
        assert (found.token, found.alert_token, found.read_token) == (TOKEN, TOKEN[::-1], None)

    def test_an_argument_beats_it(self, tmp_path: Path) -> None:
        """As it beats every variable; the file is not even looked for."""
        assert resolve({"token": TOKEN}, {"MONITOR_TOKEN_FILE": str(tmp_path / "none")}).token == TOKEN

    @pytest.mark.parametrize(
        ("content", "complaint"),
        [
            (None, "must be a file"),
            (b"", "must be a file"),
            (b"x" * 9000, "must be a file"),
            (b"\xff", "cannot be read"),
        ],
    )
    def test_a_file_that_is_none_is_named(self, content: bytes | None, complaint: str, tmp_path: Path) -> None:
        """Missing, empty, too long, no text: the variable and the path are told."""
        path = tmp_path / "secret"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ValueError, match=complaint) as refused:
            resolve({}, {"MONITOR_TOKEN_FILE": str(path)})
        assert str(refused.value).startswith(f"MONITOR_TOKEN_FILE={str(path)!r}")

    def test_both_at_once_are_refused(self, tmp_path: Path) -> None:
        """Nobody would know which one counts."""
        with pytest.raises(ValueError, match="MONITOR_TOKEN and MONITOR_TOKEN_FILE are both set; keep one"):
            resolve({}, {"MONITOR_TOKEN": TOKEN, "MONITOR_TOKEN_FILE": str(tmp_path)})
