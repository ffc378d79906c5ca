"""Every method of every service of the contract, called over real channels with every kind of token."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from every_method import METHODS, Method, Reached, server_of_everything
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from sign_in import Keyring, bearer

from halfreel_runtime import access, tokens
from halfreel_runtime.caller import ANYBODY
from halfreel_runtime.errors import DETAILS_KEY
from halfreel_runtime.scopes import METHOD_SCOPES, Scope
from halfreel_runtime.server import Server
from halfreel_runtime.settings import ServerSettings

IDS = [method.path for method in METHODS]
BY_PATH = {method.path: method for method in METHODS}


class Site:
    """A running server, and who may call it."""

    def __init__(self, server: Server, reached: Reached, channel: grpc.aio.Channel, keyring: Keyring) -> None:
        self.server, self.reached, self.channel, self.keyring = server, reached, channel, keyring

    async def call(self, method: Method, metadata: Any, request: bytes = b"") -> None:
        if method.streams:
            async for _ in self.channel.unary_stream(method.path)(request, metadata=metadata, timeout=10):
                pass
        else:
            await self.channel.unary_unary(method.path)(request, metadata=metadata, timeout=10)

    async def refusal(self, method: Method, metadata: Any, request: bytes = b"") -> tuple[grpc.StatusCode, str]:
        """The code and the reason with which a call is refused, before anything of ours was reached."""
        before = len(self.reached.calls)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await self.call(method, metadata, request)
        assert len(self.reached.calls) == before
        trailers = dict(raised.value.trailing_metadata() or ())
        status = status_pb2.Status.FromString(trailers[DETAILS_KEY])
        assert len(status.details) == 1
        info = error_details_pb2.ErrorInfo()
        assert status.details[0].Unpack(info)
        assert info.domain == "halfreel"
        assert trailers["x-request-id"]
        told = str(status) + raised.value.details()
        for secret in (*self.keyring.tokens, *self.keyring.tokens.values(), str(self.keyring.folder)):
            assert secret not in told
        return raised.value.code(), info.reason


@pytest.fixture(scope="module")
def shared_keyring(tmp_path_factory: pytest.TempPathFactory) -> Keyring:
    keyring = Keyring(tmp_path_factory.mktemp("keys"))
    for scope in Scope:
        keyring.add(f"only-{scope}", scope)
    keyring.add("everything", *Scope)
    keyring.add("outdated", *Scope, lasts=timedelta(seconds=-1))
    return keyring


@pytest.fixture(scope="module")
def foreign_token(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Good for another server."""
    return Keyring(tmp_path_factory.mktemp("foreign")).add("stranger", *Scope)


@pytest.fixture
async def site(shared_keyring: Keyring) -> AsyncIterator[Site]:
    server, reached = server_of_everything(ServerSettings(tokens_file=shared_keyring.path))
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield Site(server, reached, channel, shared_keyring)
        await server.stop(0)


def test_the_contract_was_found_and_each_method_of_it_has_a_scope() -> None:
    assert {"/halfreel.llm.v1.LlmService/Generate", "/halfreel.gateway.v1.GatewayService/ReadVideo"} < set(BY_PATH)
    assert set(METHOD_SCOPES) == set(BY_PATH), "give each new method its scope in halfreel_runtime/scopes.py"


def test_the_page_says_what_each_scope_allows() -> None:
    page = (Path(__file__).parents[3] / "docs" / "security.md").read_text(encoding="utf-8")
    rows = {scope: re.search(rf"^\| `{scope}` \| (.+?) \|$", page, re.MULTILINE) for scope in Scope}
    # `Get...` is all whose names begin so.
    told = {scope: re.findall(r"`([A-Z]\w+(?:\.\.\.)?)`", row[1]) for scope, row in rows.items() if row}
    for path, scope in METHOD_SCOPES.items():
        name = path.rpartition("/")[2]
        allowing = {
            each
            for each, words in told.items()
            if any(name.startswith(word[:-3]) if word.endswith("...") else name == word for word in words)
        }
        assert allowing == {scope}, f"{path} is allowed by {allowing} in docs/security.md"


@pytest.mark.parametrize("method", METHODS, ids=IDS)
async def test_no_method_is_reached_without_a_good_token(site: Site, foreign_token: str, method: Method) -> None:
    good = site.keyring.tokens["everything"]
    unauthenticated = grpc.StatusCode.UNAUTHENTICATED
    assert await site.refusal(method, ()) == (unauthenticated, "TOKEN_MISSING")
    for wrong in (
        "",
        "Bearer",
        f"Basic {good}",
        good,
        f"Bearer {good}x",
        f"Bearer {good[:-1]}",
        f"Bearer {foreign_token}",
    ):
        assert await site.refusal(method, (("authorization", wrong),)) == (unauthenticated, "TOKEN_INVALID"), wrong
    assert await site.refusal(method, (*bearer(good), *bearer(good))) == (unauthenticated, "TOKEN_INVALID")
    outdated = bearer(site.keyring.tokens["outdated"])
    assert await site.refusal(method, outdated) == (unauthenticated, "TOKEN_EXPIRED")


@pytest.mark.parametrize("method", METHODS, ids=IDS)
async def test_a_method_is_reached_with_its_scope_alone(site: Site, method: Method) -> None:
    needed = METHOD_SCOPES[method.path]
    for scope in Scope:
        metadata = bearer(site.keyring.tokens[f"only-{scope}"])
        if scope is needed:
            await site.call(method, metadata)
            [(path, caller)] = site.reached.calls
            assert (path, caller.name, caller.scopes) == (method.path, f"only-{scope}", {scope})
        else:
            assert await site.refusal(method, metadata) == (grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING")


@pytest.mark.parametrize("method", METHODS, ids=IDS)
async def test_a_method_without_a_scope_is_denied_to_all(
    site: Site, monkeypatch: pytest.MonkeyPatch, method: Method
) -> None:
    left = {path: scope for path, scope in METHOD_SCOPES.items() if path != method.path}
    monkeypatch.setattr(access, "METHOD_SCOPES", left)
    metadata = bearer(site.keyring.tokens["everything"])
    assert await site.refusal(method, metadata) == (grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING")


@pytest.mark.parametrize(
    "path",
    ["/grpc.health.v1.Health2/Check", "/halfreel.llm.v1.LlmService/Nothing", "/x/y", "/", "/grpc.health.v1.Health"],
)
async def test_what_is_not_there_can_not_be_found_out(site: Site, path: str) -> None:
    call = site.channel.unary_unary(path)
    for metadata, code in (
        ((), grpc.StatusCode.UNAUTHENTICATED),
        (bearer(site.keyring.tokens["everything"]), grpc.StatusCode.PERMISSION_DENIED),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call(b"", metadata=metadata, timeout=10)
        assert raised.value.code() is code


async def test_health_is_open_and_reflection_is_off(site: Site) -> None:
    request = health_pb2.HealthCheckRequest(service="halfreel.llm.v1.LlmService")
    answer = await health_pb2_grpc.HealthStub(site.channel).Check(request, timeout=10)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    stub = reflection_pb2_grpc.ServerReflectionStub(site.channel)
    for metadata, code in (
        ((), grpc.StatusCode.UNAUTHENTICATED),
        (bearer(site.keyring.tokens["everything"]), grpc.StatusCode.PERMISSION_DENIED),
    ):
        list_services = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            async for _ in stub.ServerReflectionInfo(list_services, metadata=metadata, timeout=10):
                pass
        assert raised.value.code() is code


async def test_a_refused_request_is_not_even_read(site: Site) -> None:
    """Bytes that do not parse, and more than is taken, are not what is complained of."""
    method = BY_PATH["/halfreel.video.v1.VideoService/Generate"]
    unauthenticated = (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_MISSING")
    assert await site.refusal(method, (), b"\xff\xff\xff") == unauthenticated
    assert await site.refusal(method, (), bytes(30 * 2**20)) == unauthenticated


async def test_a_refused_call_is_counted_and_logged_without_the_token(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    method = BY_PATH["/halfreel.llm.v1.LlmService/Generate"]
    token = site.keyring.tokens["only-read"]
    await site.refusal(method, bearer(token))
    with pytest.raises(grpc.aio.AioRpcError):
        await site.channel.unary_unary("/any.name/of-a-client")(b"", timeout=10)
    counted = {
        (sample.labels["method"], sample.labels["code"]): sample.value
        for family in site.server._metrics.registry.collect()
        for sample in family.samples
        if sample.name == "halfreel_requests_total"
    }
    assert counted["LlmService/Generate", "PERMISSION_DENIED"] == 1
    assert not [name for name, _ in counted if "client" in name]
    assert [record.reason for record in caplog.records if record.message == "call_refused"] == [
        *("SCOPE_MISSING", "TOKEN_MISSING")
    ]
    assert token not in caplog.text


async def test_a_revoked_token_is_refused_within_a_second_or_so(keyring: Keyring) -> None:
    token = keyring.add("anna", "read")
    server, reached = server_of_everything(ServerSettings(tokens_file=keyring.path))
    await server.start()
    method = BY_PATH["/halfreel.llm.v1.LlmService/GetModel"]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        site = Site(server, reached, channel, keyring)
        await site.call(method, bearer(token))
        keyring.path.write_text('{"tokens": []}')
        await asyncio.sleep(tokens.LOOK_INTERVAL_S + 0.05)
        assert await site.refusal(method, bearer(token)) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID")
        berta = keyring.add("berta", "read")
        await asyncio.sleep(tokens.LOOK_INTERVAL_S + 0.05)
        await site.call(method, bearer(berta))
        await server.stop(0)


async def test_refused_calls_are_cheap_and_take_no_place(site: Site) -> None:
    """The client's part included, which is the larger: 0.6 ms of processor time together on an idle machine."""
    method = BY_PATH["/halfreel.llm.v1.LlmService/Generate"]
    wrong = bearer("hr_" + "x" * 43)
    call = site.channel.unary_stream(method.path)

    async def refused() -> None:
        with pytest.raises(grpc.aio.AioRpcError):
            await call(b"", metadata=wrong).read()

    await asyncio.gather(*(refused() for _ in range(50)))
    count = 500
    began = time.process_time()
    for _ in range(count // 50):
        await asyncio.gather(*(refused() for _ in range(50)))
    each_s = (time.process_time() - began) / count
    assert each_s < 0.002, each_s
    assert site.server._boundary.call_count == 0


async def test_without_tokens_anybody_is_served(tmp_path: Path) -> None:
    server, reached = server_of_everything(ServerSettings())
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        site = Site(server, reached, channel, Keyring(tmp_path))
        for method in METHODS:
            await site.call(method, bearer("hr_whatever"))
        await server.stop(0)
    assert reached.calls == [(method.path, ANYBODY) for method in METHODS]
