"""Clients that sign in: certificates and a token, blocking, asyncio, and the command by its environment."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from halfreel.gateway.v1 import gateway_pb2_grpc
from halfreel_client import AsyncClient, Client, Credentials, CredentialsError, Unauthenticated, Unreachable

pytest.importorskip("cryptography")
TOKEN = "hr_a-secret"


class Guard(grpc.ServerInterceptor):
    """Lets only calls with the token pass."""

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        if ("authorization", f"Bearer {TOKEN}") in details.invocation_metadata:
            return continuation(details)
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: context.abort(grpc.StatusCode.UNAUTHENTICATED, "sign in")
        )


@pytest.fixture
def guarded(gateway: Any, tmp_path: Path) -> Iterator[tuple[str, Credentials]]:
    """The small gateway once more, behind TLS and a token."""
    from halfreel_client.certificates import make_certificates

    files = make_certificates(tmp_path / "certs", ("127.0.0.1", "localhost"), 1)
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN + "\n")
    token_file.chmod(0o600)
    pair = (files.key("server").read_bytes(), files.certificate("server").read_bytes())
    server = grpc.server(ThreadPoolExecutor(8), interceptors=[Guard()])
    gateway_pb2_grpc.add_GatewayServiceServicer_to_server(gateway, server)
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    server.start()
    yield f"127.0.0.1:{port}", Credentials(ca_file=files.certificate("ca"), token_file=token_file)
    server.stop(0).wait()


def test_with_certificate_and_token(guarded: tuple[str, Credentials], tmp_path: Path) -> None:
    address, credentials = guarded
    with Client(address, credentials=credentials) as client:
        assert client.wait_reachable(5)
        film = client.create_film("a red circle")
        list(client.watch(film.film_id))
        assert client.save_video(film.film_id, tmp_path / "film.mp4").stat().st_size == 1 << 20


async def test_with_certificate_and_token_asyncio(guarded: tuple[str, Credentials]) -> None:
    address, credentials = guarded
    async with AsyncClient(address, credentials=credentials) as client:
        film = await client.create_film("a red circle")
        assert [event async for event in client.watch(film.film_id)]


def test_without(guarded: tuple[str, Credentials]) -> None:
    address, credentials = guarded
    only_tls = Credentials(ca_file=credentials.ca_file)
    with Client(address, credentials=only_tls) as client, pytest.raises(Unauthenticated):
        list(client.films())
    with Client(address, patience_s=0.5) as client, pytest.raises(Unreachable):
        client.create_film("a red circle")
    with pytest.raises(CredentialsError, match="without TLS"):
        Client("films.example.org:7600", credentials=Credentials(token_file=credentials.token_file))


def test_the_command_reads_its_environment(guarded: tuple[str, Credentials], tmp_path: Path) -> None:
    address, credentials = guarded
    own = {key: value for key, value in os.environ.items() if not key.startswith("HALFREEL_")}
    own |= {"HALFREEL_CA_FILE": str(credentials.ca_file), "HALFREEL_TOKEN_FILE": str(credentials.token_file)}
    command = [sys.executable, "-m", "halfreel_client", "make", "a red circle", "--address", address]
    done = subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "film.mp4").exists()
    own["HALFREEL_TOKEN_FILE"] = str(tmp_path / "nowhere")
    done = subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "token_file" in done.stderr
