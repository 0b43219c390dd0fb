"""A Grafana that only remembers: the routes that we use, over real HTTP, with failures on demand."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

TOKEN = "glsa_of_the_double"


class Grafana:
    """Hold folders, dashboards and annotations. ``fail`` maps (method, path) to the status to answer with.

    ``say`` maps (method, path) to a body to answer with instead of doing anything, with the status 200.
    ``has_request`` is set when a request has arrived, answered or not.

    ``vanish_at`` is the uid of a dashboard: when it is sent, no request gets an answer from then on.
    """

    def __init__(self) -> None:
        self.sources = [
            {"id": 1, "uid": "loki", "name": "Loki", "type": "loki", "isDefault": False},
            {"id": 2, "uid": "prom", "name": "Prometheus", "type": "prometheus", "isDefault": True},
        ]
        self.health = {"status": "OK", "message": "Successfully queried the Prometheus API."}
        self.folders: dict[str, str] = {}
        self.dashboards: dict[str, dict[str, Any]] = {}
        self.annotations: dict[int, dict[str, Any]] = {}
        self.requests: list[tuple[str, str]] = []
        self.fail: dict[tuple[str, str], int] = {}
        self.say: dict[tuple[str, str], bytes] = {}
        self.has_request = threading.Event()
        self.fail_dashboard: dict[str, int] = {}
        self.vanish_at: str | None = None
        self.is_gone = False
        self.stall = threading.Event()
        self.stall.set()
        double = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                double.has_request.set()
                double.stall.wait(60)
                if double.vanish_at and f'"{double.vanish_at}"' in json.dumps(body):
                    double.is_gone = True
                if double.is_gone:  # the connection ends without an answer, this one and all to come
                    self.close_connection = True
                    return
                status, answer = double.answer(self.command, self.path, body, self.headers.get("Authorization"))
                content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)
                except OSError:  # the client has given up
                    self.close_connection = True

            do_GET = do_POST = do_PUT = do_DELETE = _answer  # noqa: N815 - the names that http.server looks for

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> Grafana:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Go away: the port refuses connections from here on."""
        self.stall.set()
        if self._thread.is_alive():
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def answer(self, method: str, path: str, body: Any, authorization: str | None) -> tuple[int, Any]:
        """Do what a request asks for."""
        path = path.partition("?")[0].removeprefix("/api")
        self.requests.append((method, path))
        if authorization != f"Bearer {TOKEN}":
            return 401, {"message": "Invalid API key"}
        if status := self.fail.get((method, path)):
            return status, {"message": f"made to answer {status}"}
        if (said := self.say.get((method, path))) is not None:
            return 200, said
        for known_method, prefix, act in self._routes():
            if method == known_method and path.startswith(prefix):
                return act(path.removeprefix(prefix), body)
        return 404, {"message": "Not found"}

    def _routes(self) -> list[tuple[str, str, Callable[[str, Any], tuple[int, Any]]]]:
        return [
            ("GET", "/datasources/uid/", lambda rest, _: (200 if self.health["status"] == "OK" else 400, self.health)),
            ("GET", "/datasources", lambda rest, _: (200, self.sources)),
            ("GET", "/folders", lambda rest, _: (200, [{"uid": u, "title": t} for u, t in self.folders.items()])),
            ("POST", "/folders", self._make_folder),
            ("DELETE", "/folders/", lambda rest, _: (200, {"title": self.folders.pop(rest)})),
            ("GET", "/dashboards/uid/", self._get_dashboard),
            ("POST", "/dashboards/db", self._save_dashboard),
            ("DELETE", "/dashboards/uid/", lambda rest, _: (200, {"title": self.dashboards.pop(rest, {})})),
            ("POST", "/annotations", self._add_annotation),
            ("PUT", "/annotations/", self._update_annotation),
        ]

    def _make_folder(self, rest: str, body: Any) -> tuple[int, Any]:
        uid = body.get("uid") or f"folder{len(self.folders)}"
        if uid in self.folders:
            return 409, {"message": "a folder with the same uid already exists"}
        self.folders[uid] = body["title"]
        return 200, {"uid": uid, "title": body["title"]}

    def _get_dashboard(self, uid: str, body: Any) -> tuple[int, Any]:
        if uid not in self.dashboards:
            return 404, {"message": "Dashboard not found"}
        kept = self.dashboards[uid]
        return 200, {"dashboard": kept["dashboard"], "meta": {"folderUid": kept["folderUid"], "url": f"/d/{uid}/x"}}

    def _save_dashboard(self, rest: str, body: Any) -> tuple[int, Any]:
        uid = body["dashboard"]["uid"]
        if status := self.fail_dashboard.pop(uid, None):
            return status, {"message": f"made to answer {status}"}
        if body["folderUid"] and body["folderUid"] not in self.folders:
            return 400, {"message": "folder not found"}
        if uid in self.dashboards and not body.get("overwrite"):
            return 412, {"message": "The dashboard has been changed by someone else", "status": "version-mismatch"}
        self.dashboards[uid] = body
        return 200, {"uid": uid, "url": f"/d/{uid}/x", "status": "success", "version": 1, "id": 7}

    def _add_annotation(self, rest: str, body: Any) -> tuple[int, Any]:
        number = len(self.annotations) + 1
        self.annotations[number] = body
        return 200, {"id": number, "message": "Annotation added"}

    def _update_annotation(self, rest: str, body: Any) -> tuple[int, Any]:
        self.annotations[int(rest)] = body
        return 200, {"message": "Annotation updated"}
