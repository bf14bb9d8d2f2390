"""A web server on an origin of its own that counts who asks it for what: hostile output tries to reach it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from urllib.parse import urlsplit

_TYPES = {
    ".png": ("image/png", b"\x89PNG\r\n\x1a\n"),
    ".js": ("text/javascript", b"(top.__canary = top.__canary || []).push(%(id)s); "),
    ".css": ("text/css", b":root { --%(name)s: 1 }"),
    ".html": ("text/html", b"<script>try { (top.__canary = top.__canary || []).push(%(id)s) } catch (e) {}</script>"),
    ".json": ("application/json", b'[{"a": 1, "b": 2}]'),
    ".svg": ("image/svg+xml", b'<svg xmlns="http://www.w3.org/2000/svg"/>'),
}


class Canary:
    """Counts requests.

    Attributes:
        address: Host and port.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._asked: list[str] = []
        self._lock = threading.Lock()

    def note(self, path: str) -> None:
        """Record a request; called by the server's threads."""
        with self._lock:
            self._asked.append(path)

    @property
    def asked(self) -> list[str]:
        """Paths that were asked for, in order."""
        with self._lock:
            return list(self._asked)

    def asked_by(self, names: set[str]) -> set[str]:
        """Return which cases have reached the server: the first part of a path names the case."""
        return {name for path in self.asked if (name := _name(path)) in names}


def _name(path: str) -> str:
    return PurePosixPath(urlsplit(path).path.lstrip("/").partition("/")[0]).stem


@contextmanager
def canary() -> Iterator[Canary]:
    """Run a canary on a loopback address of its own, so that no cookie of Jupyter's goes there."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.note(self.path)
            suffix = PurePosixPath(urlsplit(self.path).path).suffix
            kind, body = _TYPES.get(suffix, ("text/plain", b"x"))
            name = _name(self.path).encode()
            body = body.replace(b"%(id)s", b"'" + name + b"'").replace(b"%(name)s", name)
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Access-Control-Allow-Origin", "*")
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_HEAD = do_OPTIONS = do_GET  # noqa: N815 - the names that http.server calls

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.2", 0), Handler) as server:
        found = Canary(f"127.0.0.2:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield found
        finally:
            server.shutdown()
            thread.join()
