"""The HTTP port: the probes are open, all else needs a token that may read, and TLS holds for all of it."""

from __future__ import annotations

import asyncio
import http.client
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from every_method import server_of_everything
from sign_in import Keyring

from halfreel_client.certificates import Files, make_certificates
from halfreel_runtime.server import Server
from halfreel_runtime.settings import ServerSettings


@pytest.fixture
async def server(certificates: Files, keyring: Keyring) -> AsyncIterator[Server]:
    keyring.add("prometheus", "read")
    keyring.add("maker", "generate", "admin")
    keyring.add("outdated", "read", lasts=timedelta(seconds=-1))
    settings = ServerSettings(
        tls_certificate_file=certificates.certificate("server"),
        tls_key_file=certificates.key("server"),
        tls_client_ca_file=certificates.certificate("ca"),
        tokens_file=keyring.path,
    )
    server, _ = server_of_everything(settings)
    await server.start()
    yield server
    await server.stop(0)


def get(port: int, files: Files, path: str, token: str | None = None) -> tuple[int, str, http.client.HTTPMessage]:
    context = ssl.create_default_context(cafile=files.certificate("ca"))
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=5)
    try:
        connection.request("GET", path, headers={} if token is None else {"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), answer.headers
    finally:
        connection.close()


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/livez?verbose", "/readyz?x=/metrics"])
async def test_the_probes_are_open(server: Server, certificates: Files, path: str) -> None:
    status, body, _ = await asyncio.to_thread(get, server.metrics_port, certificates, path)
    assert (status, body) == (200, "ok\n")


@pytest.mark.parametrize("path", ["/metrics", "/", "/nothing", "/livez/", "/livez/../metrics", "/METRICS"])
async def test_all_else_needs_a_token_that_may_read(
    server: Server, certificates: Files, keyring: Keyring, tmp_path: Path, path: str
) -> None:
    (tmp_path / "elsewhere").mkdir()
    foreign = Keyring(tmp_path / "elsewhere").add("stranger", "read")

    async def asked(token: str | None) -> tuple[int, str]:
        status, body, headers = await asyncio.to_thread(get, server.metrics_port, certificates, path, token)
        assert (headers["WWW-Authenticate"] == "Bearer") == (status == 401)
        assert "halfreel_build_info" not in body or status == 200
        return status, body.split(":")[0]

    assert await asked(None) == (401, "TOKEN_MISSING")
    assert await asked("hr_x") == (401, "TOKEN_INVALID")
    assert await asked(foreign) == (401, "TOKEN_INVALID")
    assert await asked(keyring.tokens["outdated"]) == (401, "TOKEN_EXPIRED")
    assert await asked(keyring.tokens["maker"]) == (403, "SCOPE_MISSING")
    status, _ = await asked(keyring.tokens["prometheus"])
    assert status == (200 if path == "/metrics" else 404)


async def test_when_the_certificate_ends_is_told(server: Server, certificates: Files, keyring: Keyring) -> None:
    async def ends_in_days() -> float:
        token = keyring.tokens["prometheus"]
        _, body, _ = await asyncio.to_thread(get, server.metrics_port, certificates, "/metrics", token)
        [line] = re.findall(r'^halfreel_tls_certificate_expiry_timestamp_seconds{service="llm"} (.+)$', body, re.M)
        return (float(line) - time.time()) / 86400

    assert 29.9 < await ends_in_days() < 30
    make_certificates(certificates.folder, ["127.0.0.1"], 90)
    assert 89.9 < await ends_in_days() < 90


async def test_a_new_certificate_is_shown_without_a_restart(
    server: Server, certificates: Files, foreign_certificates: Files
) -> None:
    for name in ("server-key.pem", "server.pem"):
        (certificates.folder / name).write_bytes((foreign_certificates.folder / name).read_bytes())
    status, _, _ = await asyncio.to_thread(get, server.metrics_port, foreign_certificates, "/livez")
    assert status == 200
    with pytest.raises(ssl.SSLCertVerificationError):
        await asyncio.to_thread(get, server.metrics_port, certificates, "/livez")


async def test_who_connects_and_says_nothing_keeps_nobody_waiting(server: Server, certificates: Files) -> None:
    silent = [socket.create_connection(("127.0.0.1", server.metrics_port)) for _ in range(5)]
    plain = socket.create_connection(("127.0.0.1", server.metrics_port))
    plain.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
    began = time.monotonic()
    status, _, _ = await asyncio.to_thread(get, server.metrics_port, certificates, "/readyz")
    assert status == 200
    assert time.monotonic() - began < 2
    plain.settimeout(5)
    try:
        told = await asyncio.to_thread(plain.recv, 4096)
    except ConnectionResetError:
        told = b""
    assert b"halfreel" not in told
    for connection in (*silent, plain):
        connection.close()
