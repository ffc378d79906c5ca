"""Asks the server of this machine whether it is ready: `python -m halfreel_runtime.healthcheck llm|video|gateway`.

Containers run it, so it takes nothing but what comes with Python, and knows the server's address from the environment
alone. It exits 0 when the server is ready and 1 when it is not, which it says in one line.
"""

from __future__ import annotations

import http
import http.client
import os
import ssl
import sys
from collections.abc import Mapping

# Below the 5 s in which a container's engine gives it up; the server itself takes at most 2 s to look at its loop.
TIMEOUT_S = 4.0
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - looked up, not listened on


def connection(service: str, environ: Mapping[str, str]) -> http.client.HTTPConnection:
    """A connection, not opened yet, to the HTTP port of a server with these HALFREEL_* variables.

    Raises:
        KeyError: the variable of the metrics port is not set.
        ValueError: it is no number.
        OSError: the certificate can't be read.
    """
    prefix = f"HALFREEL_{service.upper()}_"
    host = environ.get(f"{prefix}HOST", "127.0.0.1")
    host = _ANY_ADDRESS.get(host, host)
    port = int(environ[f"{prefix}METRICS_PORT"])
    certificate = environ.get(f"{prefix}TLS_CERTIFICATE_FILE")
    if not certificate:
        return http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    # The server's own certificate is all that is trusted, so there is no name to check.
    context = ssl.create_default_context(cafile=certificate)
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    context.check_hostname = False
    return http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=context)


def problem(service: str, environ: Mapping[str, str]) -> str:
    """Why the server is not ready, in one line; nothing where it is."""
    try:
        asked = connection(service, environ)
        try:
            asked.request("GET", "/readyz")
            status = asked.getresponse().status
        finally:
            asked.close()
    except KeyError as error:
        return f"{error.args[0]} is not set"
    except (OSError, ValueError, http.client.HTTPException) as error:
        return f"no answer: {error}"
    return "" if status == http.HTTPStatus.OK else f"not ready: status {status}"


def main(argv: list[str]) -> int:
    """The exit code for the service that `argv` names."""
    if len(argv) != 1 or argv[0] not in ("llm", "video", "gateway"):
        sys.stderr.write("usage: python -m halfreel_runtime.healthcheck llm|video|gateway\n")
        return 2
    told = problem(argv[0], os.environ)
    if told:
        sys.stderr.write(f"halfreel-{argv[0]}: {told}\n")
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
