"""Where a server may listen: on loopback anyhow, elsewhere with TLS and tokens, or by one explicit word."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from every_method import server_of_everything
from sign_in import Keyring, bearer, trusting

from halfreel.llm.v1 import llm_pb2, llm_pb2_grpc
from halfreel_client.certificates import Files, make_certificates
from halfreel_runtime.exposure import ListenError, protection_for
from halfreel_runtime.settings import ServerSettings

LOOPBACK = ("127.0.0.1", "127.8.7.6", "::1", "localhost")
ELSEWHERE = (
    "0.0.0.0",
    "::",
    "10.0.0.1",
    "192.168.1.1",
    "8.8.8.8",
    "fe80::1",
    "::ffff:127.0.0.1",
    "gateway",
    "",
    "127.1",
)


def settings_of(host: str, files: Files | None, keyring: Keyring | None, *, allow: bool = False) -> ServerSettings:
    return ServerSettings(
        host=host,
        tls_certificate_file=files.certificate("server") if files else None,
        tls_key_file=files.key("server") if files else None,
        tokens_file=keyring.path if keyring else None,
        allow_insecure_listen=allow,
    )


@pytest.mark.parametrize("host", [*LOOPBACK, *ELSEWHERE])
def test_all_that_may_be_and_no_more(certificates: Files, keyring: Keyring, host: str) -> None:
    keyring.add("anna", "read")
    for files, keys, allow in itertools.product((None, certificates), (None, keyring), (False, True)):
        settings = settings_of(host, files, keys, allow=allow)
        if host in LOOPBACK or allow or (files and keys):
            protection = protection_for(settings)
            assert (protection.tls is not None, protection.tokens is not None) == (files is not None, keys is not None)
        else:
            with pytest.raises(ListenError, match="only loopback") as raised:
                protection_for(settings)
            assert ("tls_certificate_file" in str(raised.value), "tokens_file" in str(raised.value)) == (
                files is None,
                keys is None,
            )


def test_half_a_certificate_is_refused_on_loopback_too(certificates: Files) -> None:
    certificate, key, ca = (
        certificates.certificate("server"),
        certificates.key("server"),
        certificates.certificate("ca"),
    )
    for values, told in (
        ({"tls_certificate_file": certificate}, "tls_key_file is missing"),
        ({"tls_key_file": key}, "tls_certificate_file is missing"),
        ({"tls_client_ca_file": ca}, "tls_client_ca_file is set without"),
    ):
        with pytest.raises(ListenError, match=told):
            protection_for(ServerSettings(**values))


@pytest.mark.parametrize("mutual", [False, True])
async def test_on_any_address_with_both_a_call_needs_both(certificates: Files, keyring: Keyring, mutual: bool) -> None:
    token = keyring.add("anna", "read")
    settings = settings_of("0.0.0.0", certificates, keyring)
    if mutual:
        settings = settings.model_copy(update={"tls_client_ca_file": certificates.certificate("ca")})
    server, reached = server_of_everything(settings)
    await server.start()
    address = f"127.0.0.1:{server.port}"

    async def outcome(credentials: grpc.ChannelCredentials | None, metadata: tuple[tuple[str, str], ...]) -> str:
        channel = (
            grpc.aio.insecure_channel(address) if credentials is None else grpc.aio.secure_channel(address, credentials)
        )
        async with channel:
            try:
                stub = llm_pb2_grpc.LlmServiceStub(channel)
                await stub.GetModel(llm_pb2.GetModelRequest(), metadata=metadata, timeout=5)
            except grpc.aio.AioRpcError as error:
                return error.code().name
        return "OK"

    certified = trusting(certificates, with_client_certificate=mutual)
    assert await outcome(certified, bearer(token)) == "OK"
    assert await outcome(certified, ()) == "UNAUTHENTICATED"
    assert await outcome(None, bearer(token)) == "UNAVAILABLE"
    assert await outcome(trusting(certificates), bearer(token)) == ("UNAVAILABLE" if mutual else "OK")
    await server.stop(0)
    assert {caller.name for _, caller in reached.calls} == {"anna"}


def run_server(**settings: object) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HALFREEL_")}
    environment |= {f"HALFREEL_LLM_{key.upper()}": str(value) for key, value in settings.items()}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "small_server"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    "mistake", ["no protection", "expired", "another key", "tokens for all to see", "no tokens file", "port taken"]
)
def test_a_server_that_may_not_start_says_so_in_one_line_and_ends_with_2(
    certificates: Files, keyring: Keyring, tmp_path: Path, mistake: str
) -> None:
    keyring.add("anna", "read")
    given: dict[str, object] = {
        "tls_certificate_file": certificates.certificate("server"),
        "tls_key_file": certificates.key("server"),
        "tokens_file": keyring.path,
    }
    told = mistake
    with socket.socket() as taken:
        if mistake == "no protection":
            given, told = {"host": "0.0.0.0"}, "only loopback (127.0.0.1, ::1) may be listened on without"
        elif mistake == "expired":
            old = make_certificates(tmp_path / "old", ["localhost"], 30, now=datetime.now(UTC) - timedelta(days=31))
            given |= {"tls_certificate_file": old.certificate("server"), "tls_key_file": old.key("server")}
            told = "certificate has expired"
        elif mistake == "another key":
            given["tls_key_file"], told = certificates.key("client"), "is not the key of tls_certificate_file"
        elif mistake == "tokens for all to see":
            keyring.path.chmod(0o644)
            told = "has the rights 0644"
        elif mistake == "no tokens file":
            keyring.path.unlink()
            told = "can't be read: No such file"
        else:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            given["port"], told = taken.getsockname()[1], "Address already in use"
        run = run_server(**given)
    assert run.returncode == 2
    lines = [json.loads(line) for line in run.stderr.splitlines()]
    errors = [line for line in lines if line["level"] == "error"]
    assert [line["event"] for line in errors] == ["not_listening"]
    assert told in errors[0]["reason"]
    assert "Traceback" not in run.stderr
