"""Serve a WSGI application inside somebody else's process: TLS, limits, deadlines. Knows no run and no API."""

from cheroot.errors import MaxSizeExceeded

from monitor.server.wsgi._addresses import address_of, is_loopback
from monitor.server.wsgi._cheroot import VOUCH
from monitor.server.wsgi._local import LocalServer
from monitor.server.wsgi._problem import CONTENT_TYPE, document
from monitor.server.wsgi._serve import HttpServer, tls_context

__all__ = [
    "CONTENT_TYPE",
    "VOUCH",
    "HttpServer",
    "LocalServer",
    "MaxSizeExceeded",
    "address_of",
    "document",
    "is_loopback",
    "tls_context",
]
