"""Serves /metrics, /livez and /readyz over HTTP, in threads that neither wait for the asyncio loop nor for a GPU.

It does not know which metrics there are, nor what makes a server live or ready.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

# A client that sends its request slower than this is cut off.
READ_TIMEOUT_S = 5.0


class MetricsEndpoint:
    """An HTTP server in threads of its own.

    Args:
        host: address to listen on.
        port: 0 for any free one.
        registry: what /metrics shows.
        live: whether the process works at all.
        ready: whether it serves.

    Raises:
        OSError: the port can't be had.
    """

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        live: Callable[[], bool],
        ready: Callable[[], bool],
    ) -> None:
        probes = {"/livez": live, "/readyz": ready}

        class Handler(BaseHTTPRequestHandler):
            timeout = READ_TIMEOUT_S
            server_version = "halfreel"
            sys_version = ""

            def do_GET(self) -> None:
                path = self.path.split("?")[0]
                if path == "/metrics":
                    encode, content_type = choose_encoder(self.headers.get("Accept", ""))
                    self._answer(200, content_type, encode(registry))
                elif path in probes:
                    ok = probes[path]()
                    self._answer(200 if ok else 503, "text/plain", b"ok\n" if ok else b"not ok\n")
                else:
                    self._answer(404, "text/plain", b"there are /metrics, /livez and /readyz\n")

            def _answer(self, status: int, content_type: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                """Scrapes are not logged."""

        self._server = _Server((host, port), Handler)
        self.port: int = self._server.server_address[1]
        # How late it notices that it shall stop.
        serve = functools.partial(self._server.serve_forever, poll_interval=0.1)
        self._thread = threading.Thread(target=serve, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A scraper that hung up is no event."""
