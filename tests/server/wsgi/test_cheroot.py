"""What monitor/server/wsgi takes from cheroot beyond its documentation, name by name.

A version of cheroot that lacks one fails here with the name and its purpose, not somewhere in a served request.
"""

from __future__ import annotations

import ast
import inspect
import logging
import socket
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from cheroot import errors, makefile
from cheroot.connections import ConnectionManager
from cheroot.server import HeaderReader, HTTPConnection, HTTPRequest, HTTPServer
from cheroot.wsgi import Gateway_10, Server

import monitor.server.wsgi
from monitor.server.wsgi import _cheroot, _connection, _parsing

PRIVATE = {
    "_write_buf": "dropping what a client that is gone has not read",
}
"""The private attributes of others that monitor/server/wsgi reads -> what for."""
OVERRIDDEN = {
    Server: {
        "bind": "the errno of a busy port",
        "bind_socket": "SO_REUSEADDR, and no socket left open by a busy port",
        "bind_unix_socket": "a socket in a folder that others cannot connect to",
        "error_log": "failures go to logging, not to stderr",
        "prepare": "a descriptor that systemd has given to another program is not taken",
        "process_conn": "a connection takes a worker only once it has something to say",
    },
    HTTPConnection: {"communicate": "the deadline of a request", "close": "closing at once"},
    HTTPRequest: {
        "read_request_line": "a malformed address is a 400",
        "read_request_headers": "refusing what smuggles requests",
        "simple_response": "refusals are problem documents",
        "send_headers": "what is left of a body is read or the connection closed",
        "respond": "the deadline of a body",
    },
    makefile.StreamReader: {"readline": "a bound for lines, and their form"},
    Gateway_10: {"get_environ": "the application can say that it knows who asks"},
    HeaderReader: {"__call__": "lines that are no headers are refused"},
}
"""cheroot's methods that ours replace -> what for."""
OURS = {
    Server: _cheroot.CheroServer,
    HTTPConnection: _connection.Connection,
    HTTPRequest: _connection._Request,
    makefile.StreamReader: _connection._RequestReader,
    Gateway_10: _cheroot._Gateway,
    HeaderReader: _parsing.StrictHeaderReader,
}
ATTRIBUTES = {
    "server": [
        "ConnectionClass", "bind_addr", "gateway", "keep_alive_conn_limit", "max_request_body_size",
        "max_request_header_size", "prepare", "put_conn", "requests", "serve", "shutdown_timeout", "socket", "software",
        "ssl_adapter", "stats", "stop", "timeout",
    ],
    "connection": ["RequestHandlerClass", "remote_addr", "rfile", "server", "socket", "wfile"],
    "request": ["chunked_read", "close_connection", "conn", "header_reader", "inheaders", "status"],
    "reader": ["bytes_read"],
    "writer": ["bytes_written", "_write_buf"],
}  # fmt: skip
"""What ours read or set on cheroot's objects."""


def lacking(name: str, purpose: str) -> str:
    return (
        f"cheroot {version('cheroot')} has no {name}, which monitor/server/wsgi needs ({purpose}): adapt it, or bound "
        "the version in pyproject.toml; docs/decisions/0011-cheroot.md says what holds"
    )


@pytest.fixture
def parts() -> Iterator[dict[str, Any]]:
    """cheroot's own objects, none of ours: a server on a port, and a connection and a request of its."""
    server = HTTPServer(("127.0.0.1", 0), None)
    server.prepare()
    here, there = socket.socketpair()
    connection = HTTPConnection(server, here)
    request = HTTPRequest(server, connection)
    try:
        yield {
            "server": server,
            "connection": connection,
            "request": request,
            "reader": connection.rfile,
            "writer": connection.wfile,
        }
    finally:
        connection.close()
        there.close()
        here.close()
        server.stop()
        getattr(logging, "statistics", {}).clear()


def test_the_private_attributes_are_these() -> None:
    """monitor/server/wsgi reads no private attribute of another's object that has no test here."""
    read = set()
    for path in Path(monitor.server.wsgi.__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr.startswith("_")]
        own |= {node.attr for node in nodes if isinstance(node.ctx, ast.Store)}
        given = (target for node in ast.walk(tree) if isinstance(node, ast.Assign) for target in node.targets)
        own |= {target.id for target in given if isinstance(target, ast.Name)}
        read |= {node.attr for node in nodes if not node.attr.startswith("__")} - own
    assert read == set(PRIVATE)


@pytest.mark.parametrize("name", PRIVATE)
def test_a_private_attribute_is_there(parts: dict[str, Any], name: str) -> None:
    """It is what it was taken for: a buffer of bytes."""
    assert hasattr(parts["writer"], name), lacking(name, PRIVATE[name])
    held = getattr(parts["writer"], name)
    assert isinstance(held, bytearray), f"{name} is a {type(held)}, no longer a buffer of bytes"


@pytest.mark.parametrize(
    ("base", "name"), [(base, name) for base, names in OVERRIDDEN.items() for name in names], ids=str
)
def test_a_method_that_ours_replaces_is_there(base: type, name: str) -> None:
    """cheroot has it, and calls it with what ours takes."""
    assert hasattr(base, name), lacking(f"{base.__name__}.{name}", OVERRIDDEN[base][name])
    theirs, ours = (list(inspect.signature(getattr(owner, name)).parameters.values()) for owner in (base, OURS[base]))
    needed = [one for one in ours[len(theirs) :] if one.default is one.empty and one.kind is not one.VAR_KEYWORD]
    assert len(theirs) <= len(ours), f"cheroot {version('cheroot')} gives {base.__name__}.{name} {theirs}, ours {ours}"
    assert not needed, f"cheroot {version('cheroot')} does not give {base.__name__}.{name} {needed}"


def test_every_method_that_ours_replaces_is_listed() -> None:
    """A method of ours by the name of one of cheroot's has a line here."""
    for base, ours in OURS.items():
        replaced = {name for name, value in vars(ours).items() if inspect.isroutine(value) and hasattr(base, name)}
        assert replaced - {"__init__"} == set(OVERRIDDEN[base]), base


@pytest.mark.parametrize(("part", "name"), [(part, name) for part, names in ATTRIBUTES.items() for name in names])
def test_an_attribute_is_there(parts: dict[str, Any], part: str, name: str) -> None:
    """cheroot's own object has it before any request."""
    assert hasattr(parts[part], name), lacking(f"{part}.{name}", "read or set by ours")


def test_the_pool_is_asked_for_what_ours_has(parts: dict[str, Any]) -> None:
    """Whatever cheroot names of its pool of threads, ours has too."""
    source = "".join(inspect.getsource(kind) for kind in (HTTPServer, ConnectionManager))
    asked = {
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute) and node.value.attr == "requests"
    }
    server = _cheroot.CheroServer(("127.0.0.1", 0), None, 1, lambda _: None)
    assert len(asked) >= 3
    assert [name for name in asked if not hasattr(server.requests, name)] == []
    server.forget_statistics()


def test_a_timeout_is_known_by_its_words() -> None:
    """cheroot answers 408 for an error with the text that ours raises."""
    assert "timed out" in errors.socket_errors_to_ignore, lacking("'timed out'", "408 for a request that is too slow")


def test_the_files_of_a_connection_are_those_of_pyio() -> None:
    """Ours build StreamReader and StreamWriter on a raw file with a deadline, through _pyio's constructors."""
    import _pyio

    assert issubclass(makefile.StreamReader, _pyio.BufferedReader), lacking("_pyio.BufferedReader", "deadlines")
    assert issubclass(makefile.StreamWriter, _pyio.BufferedWriter), lacking("_pyio.BufferedWriter", "deadlines")
