"""A web server on loopback, in a process of its own: the other end of ``agentvm bench egress``."""

from __future__ import annotations

import socketserver
import subprocess  # nosec B404 - runs this module
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Final

_CHUNK: Final = bytes(1 << 20)
_END_SECONDS: Final = 10.0


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 4096


class _Handler(BaseHTTPRequestHandler):
    """``/bytes/N`` answers with so many bytes, ``/held`` with the beginning of an answer that never comes."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        *_, last = self.path.split("/")
        size = 1 << 30 if last == "held" else int(last)
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        if last == "held":
            self.wfile.flush()
            self.rfile.read(1)  # returns when the client has gone
            return
        while size:
            self.wfile.write(_CHUNK[:size])
            size -= min(size, len(_CHUNK))

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - named so by its base
        """Say nothing."""


@contextmanager
def web_server() -> Iterator[int]:
    """Run the server.

    Yields:
        Its port.
    """
    process = subprocess.Popen(  # nosec B603
        [sys.executable, "-P", "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdin is not None  # nosec B101 - asked for
    assert process.stdout is not None  # nosec B101 - asked for
    try:
        with process.stdin, process.stdout:
            yield int(process.stdout.readline())
    finally:
        process.terminate()
        process.wait(_END_SECONDS)


def main() -> None:
    """Serve until standard input ends, as it does when the parent is gone."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(server.server_address[1], flush=True)
        sys.stdin.read()
        server.shutdown()


if __name__ == "__main__":
    main()
