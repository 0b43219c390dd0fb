"""A scrape target that serves one made-up snapshot: two GPUs that offer everything, on a machine that has none."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from monitor.export import Exporter
from tests.export.full_snapshot import make_snapshot

RUN_ID = make_snapshot().run.run_id


@contextmanager
def snapshot_target(path: Path) -> Iterator[str]:
    """Serve the snapshot with the real exporter, write its target into ``path``, and give its address."""
    exporter = Exporter(lambda: make_snapshot(groups=2))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body, content_type = exporter.render(self.headers.get("Accept"))
            self.send_response(200)
            self.send_header("Content-Type", content_type)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        instance = f"127.0.0.1:{server.server_port}"
        path.write_text(f'[{{"targets": ["{instance}"]}}]')
        try:
            yield instance
        finally:
            server.shutdown()
            thread.join()
