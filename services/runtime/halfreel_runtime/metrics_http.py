"""Serves /metrics, /livez and /readyz over HTTP or HTTPS, in threads that wait neither for the asyncio loop nor a GPU.

It does not know which metrics there are, nor what makes a server live or ready.
"""

from __future__ import annotations

import functools
import http
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from halfreel_runtime.errors import HalfreelError, Unauthenticated
from halfreel_runtime.scopes import METRICS_SCOPE
from halfreel_runtime.tls import ServerTls
from halfreel_runtime.tokens import TokenFile, check_scope

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
        tls: makes it HTTPS.
        tokens: all but /livez and /readyz needs one of them, with the scope read.

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
        tls: ServerTls | None = None,
        tokens: TokenFile | None = None,
    ) -> None:
        probes = {"/livez": live, "/readyz": ready}

        class Handler(BaseHTTPRequestHandler):
            timeout = READ_TIMEOUT_S
            server_version = "halfreel"
            sys_version = ""

            def do_GET(self) -> None:
                path = self.path.split("?")[0]
                if path in probes:
                    ok = probes[path]()
                    self._answer(200 if ok else 503, "text/plain", b"ok\n" if ok else b"not ok\n")
                elif not self._let_in():
                    pass
                elif path == "/metrics":
                    encode, content_type = choose_encoder(self.headers.get("Accept", ""))
                    self._answer(200, content_type, encode(registry))
                else:
                    self._answer(404, "text/plain", b"there are /metrics, /livez and /readyz\n")

            def _let_in(self) -> bool:
                """Whether the request may go on; it is answered where it may not."""
                if tokens is None:
                    return True
                try:
                    check_scope(tokens.authenticate(self.headers.get_all("Authorization") or []), METRICS_SCOPE)
                except HalfreelError as error:
                    status = 401 if isinstance(error, Unauthenticated) else 403
                    self._answer(status, "text/plain", f"{error.reason}: {error.message}\n".encode())
                    return False
                return True

            def _answer(self, status: int, content_type: str, body: bytes) -> None:
                self.send_response(status)
                if status == http.HTTPStatus.UNAUTHORIZED:
                    self.send_header("WWW-Authenticate", "Bearer")
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                """Scrapes are not logged."""

        self._server = _Server((host, port), Handler, tls)
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

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler], tls: ServerTls | None) -> None:
        self._tls = tls
        super().__init__(address, handler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """One connection, in its thread: there and not before, it may take its time to agree on a cipher."""
        if self._tls is None:
            super().finish_request(request, client_address)
            return
        request.settimeout(READ_TIMEOUT_S)
        with self._tls.https_context().wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)

    def handle_error(self, request: object, client_address: object) -> None:
        """A scraper that hung up is no event."""
