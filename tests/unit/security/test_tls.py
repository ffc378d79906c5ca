"""A server's certificate over real connections: who is believed, what is refused, how it is replaced while it runs."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from sign_in import trusting

from halfreel_client.certificates import Files, make_certificates
from halfreel_runtime.tls import ServerTls
from halfreel_runtime.watched_file import FileRefusedError

SERVING = health_pb2.HealthCheckResponse.SERVING


def tls_of(files: Files, *, mutual: bool = False) -> ServerTls:
    return ServerTls(files.certificate("server"), files.key("server"), files.certificate("ca") if mutual else None)


@asynccontextmanager
async def serving(tls: ServerTls) -> AsyncIterator[str]:
    server = grpc.aio.server()
    servicer = health_aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    await servicer.set("", SERVING)
    port = server.add_secure_port("127.0.0.1:0", tls.grpc_credentials())
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(0)


async def answers(address: str, credentials: grpc.ChannelCredentials | None) -> bool:
    """Whether a new connection gets an answer."""
    # Channels of one process to one address may share a connection; these must not.
    options = (("grpc.use_local_subchannel_pool", 1),)
    channel = (
        grpc.aio.insecure_channel(address, options)
        if credentials is None
        else grpc.aio.secure_channel(address, credentials, options)
    )
    async with channel:
        try:
            reply = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                return False
            raise
        return reply.status == SERVING


async def test_who_trusts_the_ca_is_answered(certificates: Files, foreign_certificates: Files) -> None:
    async with serving(tls_of(certificates)) as address:
        assert await answers(address, trusting(certificates))
        assert await answers(address.replace("127.0.0.1", "localhost"), trusting(certificates))
        assert not await answers(address, trusting(foreign_certificates))
        assert not await answers(address, None)


async def test_a_certificate_for_another_name_is_not_believed(tmp_path: Path) -> None:
    files = make_certificates(tmp_path / "named", ["video.example"], 30)
    async with serving(tls_of(files)) as address:
        assert not await answers(address, trusting(files))


async def test_with_a_client_ca_only_its_clients_are_answered(certificates: Files, foreign_certificates: Files) -> None:
    async with serving(tls_of(certificates, mutual=True)) as address:
        assert await answers(address, trusting(certificates, with_client_certificate=True))
        assert not await answers(address, trusting(certificates))
        stranger = grpc.ssl_channel_credentials(
            certificates.certificate("ca").read_bytes(),
            foreign_certificates.key("client").read_bytes(),
            foreign_certificates.certificate("client").read_bytes(),
        )
        assert not await answers(address, stranger)


async def test_a_new_certificate_is_used_without_a_restart(
    certificates: Files, foreign_certificates: Files, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "halfreel_runtime.tls")
    async with serving(tls_of(certificates)) as address:
        assert await answers(address, trusting(certificates))
        for path in (certificates.key("server"), certificates.certificate("server")):
            path.write_bytes((foreign_certificates.folder / path.name).read_bytes())
        assert await answers(address, trusting(foreign_certificates))
        assert not await answers(address, trusting(certificates))
    assert [record.message for record in caplog.records] == ["tls_reloaded"]


async def test_a_renewal_by_the_same_ca_needs_nothing_of_the_clients(certificates: Files) -> None:
    tls = tls_of(certificates)
    client = trusting(certificates)
    async with serving(tls) as address:
        assert await answers(address, client)
        make_certificates(certificates.folder, ["127.0.0.1"], 300)
        assert await answers(address, client)
    assert tls.expires > datetime.now(UTC) + timedelta(days=299)


@pytest.mark.parametrize("broken", ["half written", "gone", "for others to read", "another key", "expired"])
async def test_a_bad_new_file_leaves_the_old_in_use_and_is_logged_once(
    certificates: Files, tmp_path: Path, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tls_of(certificates)) as address:
        client = trusting(certificates)
        key = certificates.key("server")
        good = key.read_bytes()
        if broken == "half written":
            key.write_bytes(good[:100])
        elif broken == "gone":
            key.unlink()
        elif broken == "for others to read":
            key.write_bytes(good)
            key.chmod(0o644)
        elif broken == "another key":
            key.write_bytes(certificates.key("client").read_bytes())
        else:
            old = make_certificates(tmp_path / "old", ["127.0.0.1"], 30, now=datetime.now(UTC) - timedelta(days=31))
            for path in (key, certificates.certificate("server")):
                path.write_bytes((old.folder / path.name).read_bytes())
        for _ in range(3):
            assert await answers(address, client)
        assert [record.message for record in caplog.records] == ["tls_not_reloaded"]
        if broken != "expired":
            key.write_bytes(good)
            key.chmod(0o600)
            assert await answers(address, client)
            # Once: the level of the log may be set so low that the good file's return is told as well.
            assert [record.message for record in caplog.records].count("tls_not_reloaded") == 1


def encrypted(key: bytes) -> bytes:
    secret = serialization.BestAvailableEncryption(b"password")
    formats = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    return serialization.load_pem_private_key(key, None).private_bytes(*formats, secret)


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("server-key.pem", lambda files: files.key("client").read_bytes(), "is not the key of tls_certificate_file"),
        ("server-key.pem", lambda files: encrypted(files.key("server").read_bytes()), "is encrypted"),
        ("server-key.pem", lambda files: b"", "is not PEM"),
        ("server-key.pem", lambda files: None, "No such file"),
        ("server.pem", lambda files: None, "No such file"),
        ("server.pem", lambda files: os.urandom(1000), "is not PEM"),
        ("server.pem", lambda files: b"x" * 2**21, "is larger than 1048576 bytes"),
        ("ca.pem", lambda files: files.certificate("server").read_bytes(), "holds no certificate of a CA"),
        ("ca.pem", lambda files: b"\xff", "holds no certificate in PEM"),
    ],
)
def test_a_file_that_can_not_be_used_is_named(certificates: Files, name: str, change: Any, told: str) -> None:
    content = change(certificates)
    path = certificates.folder / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(FileRefusedError, match=told) as raised:
        tls_of(certificates, mutual=True)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(("days_ago", "told"), [(31, "certificate has expired"), (-2, "certificate is not yet valid")])
def test_a_certificate_out_of_its_time_is_refused(tmp_path: Path, days_ago: int, told: str) -> None:
    files = make_certificates(tmp_path, ["localhost"], 30, now=datetime.now(UTC) - timedelta(days=days_ago))
    with pytest.raises(FileRefusedError, match=told):
        tls_of(files)


def test_a_client_s_certificate_serves_nobody(certificates: Files) -> None:
    with pytest.raises(FileRefusedError, match="unsuitable certificate purpose"):
        ServerTls(certificates.certificate("client"), certificates.key("client"))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o620])
def test_a_key_that_others_may_get_at_is_refused(certificates: Files, mode: int) -> None:
    certificates.key("server").chmod(mode)
    with pytest.raises(FileRefusedError, match=f"has the rights {mode:04o}.*make them 0600"):
        tls_of(certificates)
