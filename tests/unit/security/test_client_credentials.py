"""The clients over TLS and with a token: what they show, to whom, and what they refuse to send."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from every_method import Reached, server_of_everything
from sign_in import Keyring

import halfreel_client
from halfreel_client import Credentials, CredentialsError
from halfreel_client.certificates import Files
from halfreel_runtime.server import Server
from halfreel_runtime.settings import ServerSettings


class Guarded:
    """A server with TLS, client certificates and tokens, and what one needs to call it."""

    def __init__(self, server: Server, reached: Reached, files: Files, keyring: Keyring) -> None:
        self.reached, self.files, self.keyring = reached, files, keyring
        self.address = f"127.0.0.1:{server.port}"

    def credentials(self, name: str, **changes: Any) -> Credentials:
        files = {
            "ca_file": self.files.certificate("ca"),
            "token_file": self.keyring.file(name),
            "certificate_file": self.files.certificate("client"),
            "key_file": self.files.key("client"),
        }
        return Credentials(**(files | changes))

    @property
    def callers(self) -> list[str]:
        return [f"{path.rpartition('/')[2]} {caller.name}" for path, caller in self.reached.calls]


@pytest.fixture
async def guarded(certificates: Files, keyring: Keyring) -> AsyncIterator[Guarded]:
    keyring.add("anna", "generate", "read")
    keyring.add("reader", "read")
    settings = ServerSettings(
        tls_certificate_file=certificates.certificate("server"),
        tls_key_file=certificates.key("server"),
        tls_client_ca_file=certificates.certificate("ca"),
        tokens_file=keyring.path,
    )
    server, reached = server_of_everything(settings)
    await server.start()
    yield Guarded(server, reached, certificates, keyring)
    await server.stop(0)


async def test_every_client_signs_in(guarded: Guarded) -> None:
    own = guarded.credentials("anna")

    def blocking() -> None:
        with halfreel_client.Client(guarded.address, credentials=own) as gateway:
            assert gateway.wait_reachable(5)
            assert gateway.memory() == ()
            gateway.delete("0" * 32)
        with halfreel_client.LlmClient(guarded.address, credentials=own) as llm:
            assert list(llm.generate(text_request())) == []
        with halfreel_client.VideoClient(guarded.address, credentials=own) as video:
            assert list(video.generate(halfreel_client.ClipRequest(prompt="a red circle"))) == []

    await asyncio.to_thread(blocking)
    async with halfreel_client.AsyncClient(guarded.address, credentials=own) as gateway:
        assert await gateway.wait_reachable(5)
        assert await gateway.memory() == ()
    async with halfreel_client.AsyncLlmClient(guarded.address, credentials=own) as llm:
        assert [event async for event in llm.generate(text_request())] == []
    async with halfreel_client.AsyncVideoClient(guarded.address, credentials=own) as video:
        assert [event async for event in video.generate(halfreel_client.ClipRequest(prompt="x"))] == []
    calls = ["MemoryStatus", "DeleteFilm", "Generate", "Generate", "MemoryStatus", "Generate", "Generate"]
    assert guarded.callers == [f"{call} anna" for call in calls]


def text_request() -> halfreel_client.TextRequest:
    return halfreel_client.TextRequest(messages=(halfreel_client.Message(halfreel_client.Role.USER, "hello"),))


async def test_what_is_lacking_is_told_apart(guarded: Guarded, foreign_certificates: Files) -> None:
    async def outcome(credentials: Credentials | None) -> str:
        async with halfreel_client.AsyncClient(guarded.address, credentials=credentials, patience_s=0) as client:
            try:
                await client.delete("0" * 32)
            except halfreel_client.HalfreelError as error:
                return f"{type(error).__name__} {error.reason}"
        return "OK"

    assert await outcome(guarded.credentials("anna")) == "OK"
    assert await outcome(guarded.credentials("anna", token_file=None)) == "Unauthenticated TOKEN_MISSING"
    assert await outcome(guarded.credentials("reader")) == "PermissionDenied SCOPE_MISSING"
    assert await outcome(guarded.credentials("anna", certificate_file=None, key_file=None)) == "Unreachable UNREACHABLE"
    assert await outcome(None) == "Unreachable UNREACHABLE"
    stranger = guarded.credentials("anna", ca_file=foreign_certificates.certificate("ca"))
    assert await outcome(stranger) == "Unreachable UNREACHABLE"


async def test_a_replaced_token_is_used_at_the_next_call(guarded: Guarded) -> None:
    own = guarded.credentials("reader")
    assert own.token_file is not None
    async with halfreel_client.AsyncClient(guarded.address, credentials=own) as client:
        with pytest.raises(halfreel_client.PermissionDenied):
            await client.delete("0" * 32)
        own.token_file.write_text(guarded.keyring.tokens["anna"])
        await client.delete("0" * 32)
    assert guarded.callers == ["DeleteFilm anna"]


async def test_leaving_a_signed_stream_ends_it(guarded: Guarded) -> None:
    async with halfreel_client.AsyncLlmClient(guarded.address, credentials=guarded.credentials("anna")) as llm:
        stream = llm.generate(text_request())
        task = asyncio.ensure_future(anext(stream, None))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await stream.aclose()
        assert await llm.memory()


@pytest.mark.parametrize(
    "address", ["gateway:7600", "10.0.0.1:7600", "[2001:db8::1]:7600", "localhost.example:7600", "0.0.0.0:7600", "x"]
)
def test_a_token_is_not_sent_over_the_network_for_all_to_read(keyring: Keyring, address: str) -> None:
    keyring.add("anna", "read")
    own = Credentials(token_file=keyring.file("anna"))
    for client in (halfreel_client.Client, halfreel_client.LlmClient, halfreel_client.VideoClient):
        with pytest.raises(CredentialsError, match="without TLS"):
            client(address, credentials=own)


@pytest.mark.parametrize("address", ["127.0.0.1:7600", "[::1]:7600", "localhost:7600", "127.9.9.9:1"])
def test_on_this_machine_a_token_may_go_without_tls(keyring: Keyring, address: str) -> None:
    token = keyring.add("anna", "read")
    signed = Credentials(token_file=keyring.file("anna")).token(address)
    assert signed is not None
    assert signed.authorization() == (("authorization", f"Bearer {token}"),)


@pytest.mark.parametrize(
    ("content", "mode", "told"),
    [
        ("hr_x", 0o644, "can be read by others"),
        ("hr_x", 0o640, "can be read by others"),
        ("", 0o600, "must hold a token and nothing else"),
        ("two words", 0o600, "must hold a token and nothing else"),
        ("ä", 0o600, "must hold a token and nothing else"),
        ("a\nb", 0o600, "must hold a token and nothing else"),
        ("x" * 2000, 0o600, "must hold a token and nothing else"),
        (None, 0o600, "can't be read: No such file"),
    ],
)
def test_a_file_that_holds_no_token_is_refused(tmp_path: Path, content: str | None, mode: int, told: str) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_text(content)
        path.chmod(mode)
    with pytest.raises(CredentialsError, match=told):
        halfreel_client.Client("127.0.0.1:1", credentials=Credentials(token_file=path))


def test_files_that_do_not_go_together_are_refused(certificates: Files) -> None:
    certificate, key, ca = (
        certificates.certificate("client"),
        certificates.key("client"),
        certificates.certificate("ca"),
    )
    for credentials, told in (
        (Credentials(ca_file=ca, certificate_file=certificate), "go together"),
        (Credentials(ca_file=ca, key_file=key), "go together"),
        (Credentials(certificate_file=certificate, key_file=key), "over TLS alone"),
        (Credentials(ca_file=ca.with_name("none.pem")), "can't be read"),
    ):
        with pytest.raises(CredentialsError, match=told):
            halfreel_client.Client("127.0.0.1:1", credentials=credentials)


def test_the_environment_names_the_files() -> None:
    environ = {"HALFREEL_CA_FILE": "/ca.pem", "HALFREEL_TOKEN_FILE": "~/token", "HALFREEL_KEY_FILE": ""}
    assert Credentials.from_environment(environ) == Credentials(
        ca_file=Path("/ca.pem"), token_file=Path("~/token").expanduser()
    )
    assert Credentials.from_environment({}) == Credentials()
