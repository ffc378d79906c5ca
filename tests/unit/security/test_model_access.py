"""The gateway's channels to model servers: certificates, names and tokens over real connections."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from every_method import server_of_everything
from sign_in import Keyring

from halfreel.llm.v1 import llm_pb2, llm_pb2_grpc
from halfreel_client.certificates import Files
from halfreel_gateway.channels import balanced_channel, single_channel
from halfreel_gateway.model_access import model_access
from halfreel_gateway.settings import LLM_SERVICE, GatewaySettings
from halfreel_runtime.caller import Caller
from halfreel_runtime.settings import ServerSettings

REQUEST = llm_pb2.GetModelRequest()


class Site:
    """Two guarded model servers, and the settings of a gateway that may call them."""

    def __init__(self, addresses: list[str], callers: list[list[tuple[str, Caller]]], settings: dict[str, Any]) -> None:
        self.addresses = addresses
        self.callers = callers
        self.settings = settings

    def gateway(self, **changes: Any) -> GatewaySettings:
        return GatewaySettings(**{"llm_addresses": tuple(self.addresses), **self.settings, **changes})


@pytest.fixture
async def site(certificates: Files, keyring: Keyring) -> AsyncIterator[Site]:
    keyring.add("gateway", "generate", "read")
    settings = ServerSettings(
        tls_certificate_file=certificates.certificate("server"),
        tls_key_file=certificates.key("server"),
        tls_client_ca_file=certificates.certificate("ca"),
        tokens_file=keyring.path,
    )
    running = [server_of_everything(settings) for _ in range(2)]
    for server, _ in running:
        await server.start()
    own = {
        "model_ca_file": certificates.certificate("ca"),
        "model_token_file": keyring.file("gateway"),
        "model_certificate_file": certificates.certificate("client"),
        "model_key_file": certificates.key("client"),
    }
    yield Site([f"127.0.0.1:{server.port}" for server, _ in running], [reached.calls for _, reached in running], own)
    for server, _ in running:
        await server.stop(0)


async def test_calls_go_to_all_servers_with_the_gateway_s_name(site: Site) -> None:
    def calls() -> None:
        with balanced_channel(site.addresses, LLM_SERVICE, model_access(site.gateway())) as channel:
            stub = llm_pb2_grpc.LlmServiceStub(channel)
            deadline = time.monotonic() + 20
            while not all(site.callers):
                stub.GetModel(REQUEST, timeout=10, wait_for_ready=True)
                assert list(stub.Generate(llm_pb2.GenerateRequest(), timeout=10))
                assert stub.GetModel.future(REQUEST, timeout=10).result() is not None
                assert time.monotonic() < deadline

    await asyncio.to_thread(calls)
    assert {caller.name for calls in site.callers for _, caller in calls} == {"gateway"}


async def test_one_server_is_asked_by_the_name_that_led_to_it(site: Site, tmp_path: Path) -> None:
    access = model_access(site.gateway())
    port = site.addresses[0].rpartition(":")[2]
    for name, good in ((f"127.0.0.1:{port}", True), (f"localhost:{port}", True), (f"video.example:{port}", False)):
        async with single_channel(f"127.0.0.1:{port}", access, name) as channel:
            stub = llm_pb2_grpc.LlmServiceStub(channel)
            if good:
                await stub.MemoryStatus(llm_pb2.MemoryStatusRequest(), timeout=10)
            else:
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await stub.MemoryStatus(llm_pb2.MemoryStatusRequest(), timeout=10)
                assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_new_token_is_used_without_a_restart(site: Site, keyring: Keyring) -> None:
    access = model_access(site.gateway())
    async with single_channel(site.addresses[0], access, site.addresses[0]) as channel:
        stub = llm_pb2_grpc.LlmServiceStub(channel)
        await stub.GetModel(REQUEST, timeout=10)
        keyring.path.write_text('{"tokens": []}')
        token = keyring.add("gateway-2", "generate", "read")
        await asyncio.sleep(1.1)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.GetModel(REQUEST, timeout=10)
        assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
        site.settings["model_token_file"].write_text(token)
        await asyncio.sleep(1.1)
        await stub.GetModel(REQUEST, timeout=10)
    assert [caller.name for _, caller in site.callers[0]] == ["gateway", "gateway-2"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_key_file": None}, "go together"),
        ({"model_certificate_file": None}, "go together"),
        ({"model_ca_file": None}, "model_certificate_file is shown over TLS alone"),
        ({"model_ca_file": Path("/nowhere/ca.pem")}, "model_ca_file /nowhere/ca.pem can't be read"),
        ({"model_token_file": Path("/nowhere/token")}, "model_token_file /nowhere/token can't be read"),
    ],
)
async def test_what_does_not_go_together_is_told_in_one_line(site: Site, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        model_access(site.gateway(**changes))


def test_a_token_does_not_leave_the_machine_without_tls(keyring: Keyring) -> None:
    keyring.add("gateway", "generate", "read")
    token = keyring.file("gateway")
    assert model_access(GatewaySettings(model_token_file=token)).token is not None
    settings = GatewaySettings(model_token_file=token, video_addresses=("video:7602",))
    with pytest.raises(ValueError, match="would be sent to video:7602 for all to read"):
        model_access(settings)


@pytest.mark.parametrize("secret", ["model_token_file", "model_key_file"])
async def test_secrets_for_all_to_see_are_refused(site: Site, secret: str) -> None:
    site.settings[secret].chmod(0o644)
    with pytest.raises(ValueError, match=f"{secret} .* has the rights 0644"):
        model_access(site.gateway())


@pytest.mark.parametrize("content", ["", " ", "two words", "a\nb"])
def test_a_file_without_a_token_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "token"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(ValueError, match="holds no token"):
        model_access(GatewaySettings(model_token_file=path))
