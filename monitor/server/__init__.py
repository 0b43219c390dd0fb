"""HTTP: the API, the live page and the metrics endpoint of one run."""

from monitor.server._access import RunAccess
from monitor.server._app import create_app
from monitor.server._auth import OWNER
from monitor.server._document import run_document, to_snapshot
from monitor.server._json import to_record
from monitor.server._security import LoginCodes, Security
from monitor.server.wsgi import HttpServer, LocalServer

__all__ = [
    "OWNER",
    "HttpServer",
    "LocalServer",
    "LoginCodes",
    "RunAccess",
    "Security",
    "create_app",
    "run_document",
    "to_record",
    "to_snapshot",
]
