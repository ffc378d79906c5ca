"""The health check of the images, against real servers."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from sign_in import Keyring
from small_server import small_server

from halfreel_client.certificates import make_certificates
from halfreel_runtime import healthcheck
from halfreel_runtime.settings import ModelServerSettings


async def told(service: str, **environ: str) -> str:
    """What the check says, asked from outside the server's loop."""
    return await asyncio.to_thread(healthcheck.problem, service, environ)


async def test_it_is_content_once_the_model_is_loaded_and_until_the_server_stops() -> None:
    server, servicer = small_server(ModelServerSettings())
    await server.start()
    port = str(server.metrics_port)
    assert await told("llm", HALFREEL_LLM_METRICS_PORT=port) == "not ready: status 503"
    servicer.engine.start(lambda: None)
    async with asyncio.timeout(60):
        while await told("llm", HALFREEL_LLM_METRICS_PORT=port):
            await asyncio.sleep(0.05)
    await server.stop(0)
    assert (await told("llm", HALFREEL_LLM_METRICS_PORT=port)).startswith("no answer: ")
    assert servicer.engine.close()


async def test_it_believes_the_servers_own_certificate_and_no_other(tmp_path: Path) -> None:
    names = ("video.example",)  # not the address that is asked, which does not matter here
    own, other = (make_certificates(tmp_path / folder, names, 30) for folder in ("own", "other"))
    keyring = Keyring(tmp_path)
    keyring.add("anybody", "read")
    settings = ModelServerSettings(
        host="0.0.0.0",
        tls_certificate_file=own.certificate("server"),
        tls_key_file=own.key("server"),
        tokens_file=keyring.path,
    )
    server, servicer = small_server(settings)
    await server.start()
    servicer.engine.start(lambda: None)
    environ = {"HALFREEL_VIDEO_HOST": "0.0.0.0", "HALFREEL_VIDEO_METRICS_PORT": str(server.metrics_port)}
    certificate = {"HALFREEL_VIDEO_TLS_CERTIFICATE_FILE": str(own.certificate("server"))}
    async with asyncio.timeout(60):
        while await told("video", **environ, **certificate):
            await asyncio.sleep(0.05)
    certificate = {"HALFREEL_VIDEO_TLS_CERTIFICATE_FILE": str(other.certificate("server"))}
    assert "CERTIFICATE_VERIFY_FAILED" in await told("video", **environ, **certificate)
    assert (await told("video", **environ)).startswith("no answer: ")
    await server.stop(0)
    assert servicer.engine.close()


async def test_a_server_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(healthcheck, "TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = str(silent.getsockname()[1])
        assert await told("gateway", HALFREEL_GATEWAY_METRICS_PORT=port) == "no answer: timed out"


def test_mistakes_are_told_in_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HALFREEL_LLM_METRICS_PORT", raising=False)
    assert healthcheck.main(["llm"]) == 1
    assert capsys.readouterr().err == "halfreel-llm: HALFREEL_LLM_METRICS_PORT is not set\n"
    assert healthcheck.main(["lm"]) == 2
    assert healthcheck.main([]) == 2
