"""TLS, client certificates and tokens on all three servers, made and used by the command alone: a film comes about."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

COMMAND = [sys.executable, "-m", "halfreel_client"]
SERVICES = ("llm", "video", "gateway")
UP_WITHIN_S = 120


class Site:
    """A folder with certificates and tokens, and servers that use them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.certs = folder / "certs"
        self.tokens = folder / "tokens.json"
        self.halfreel("certs", str(self.certs))
        for name, scopes in (("gateway", "generate,read"), ("anna", "generate,read"), ("berta", "generate,read")):
            self.add(name, scopes)

    def add(self, name: str, scopes: str) -> None:
        words = ("--file", str(self.tokens), "--name", name, "--scopes", scopes)
        self.halfreel("tokens", "add", *words, "--output", str(self.token(name)))

    def token(self, name: str) -> Path:
        return self.folder / f"{name}.token"

    def servers_environment(self) -> dict[str, str]:
        own = {}
        for service in SERVICES:
            prefix = f"HALFREEL_{service.upper()}_"
            own[f"{prefix}TLS_CERTIFICATE_FILE"] = str(self.certs / "server.pem")
            own[f"{prefix}TLS_KEY_FILE"] = str(self.certs / "server-key.pem")
            own[f"{prefix}TLS_CLIENT_CA_FILE"] = str(self.certs / "ca.pem")
            own[f"{prefix}TOKENS_FILE"] = str(self.tokens)
            own[f"{prefix}METRICS_PORT"] = "0"
        own["HALFREEL_LLM_DEVICE"] = own["HALFREEL_VIDEO_DEVICE"] = "cpu"
        own["HALFREEL_GATEWAY_MODEL_CA_FILE"] = str(self.certs / "ca.pem")
        own["HALFREEL_GATEWAY_MODEL_CERTIFICATE_FILE"] = str(self.certs / "client.pem")
        own["HALFREEL_GATEWAY_MODEL_KEY_FILE"] = str(self.certs / "client-key.pem")
        own["HALFREEL_GATEWAY_MODEL_TOKEN_FILE"] = str(self.token("gateway"))
        return own

    def signed(self, name: str) -> tuple[str, ...]:
        return ("--ca-file", str(self.certs / "ca.pem"), "--token-file", str(self.token(name)),
                "--certificate-file", str(self.certs / "client.pem"),
                "--key-file", str(self.certs / "client-key.pem"))  # fmt: skip

    def environment(self, **extra: str) -> dict[str, str]:
        own = {key: value for key, value in os.environ.items() if not key.startswith("HALFREEL_")}
        return own | {"HALFREEL_DATA_DIR": str(self.folder / "data")} | extra

    def halfreel(self, *words: str, code: int = 0) -> str:
        done = subprocess.run(
            [*COMMAND, *words], env=self.environment(), capture_output=True, text=True, timeout=150, cwd=self.folder
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def metrics_port(self, name: str) -> int:
        log = (self.folder / "data" / "logs" / f"{name}.log").read_text()
        lines = [json.loads(line) for line in log.splitlines() if '"listening"' in line]
        return int(lines[-1]["metrics_port"])

    def http(self, name: str, path: str, token: str | None) -> int:
        request = urllib.request.Request(f"https://127.0.0.1:{self.metrics_port(name)}{path}")
        if token is not None:
            request.add_header("Authorization", f"Bearer {token}")
        context = ssl.create_default_context(cafile=self.certs / "ca.pem")
        try:
            with urllib.request.urlopen(request, context=context, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return int(error.code)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("site"))
    words = (*site.signed("anna"), "up", "--port", "0", "--llm-port", "0", "--video-port", "0")
    output = site.folder / "up.txt"
    with output.open("w") as out:
        process = subprocess.Popen(
            [*COMMAND, *words], env=site.environment(**site.servers_environment()), stdout=out, stderr=out
        )
    try:
        deadline = time.monotonic() + UP_WITHIN_S
        while "up: the gateway is at" not in output.read_text():
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < deadline, output.read_text()
            time.sleep(0.1)
        yield site
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, output.read_text()


def test_a_film_is_made_and_is_its_maker_s_alone(site: Site) -> None:
    idea = ("make", "a red circle over the sea", "--scenes", "1", "--seconds", "1", "--output")
    site.halfreel(*site.signed("anna"), *idea, "film.mp4")
    assert (site.folder / "film.mp4").stat().st_size > 0
    [film] = [json.loads(line) for line in site.halfreel(*site.signed("anna"), "films", "--json").splitlines()]
    assert film["state"] == "succeeded"
    assert "no films yet" in site.halfreel(*site.signed("berta"), "films")
    assert "FILM_NOT_FOUND" in site.halfreel(*site.signed("berta"), "delete", film["film_id"], code=4)
    assert "reserved" in site.halfreel(*site.signed("berta"), "status", "--once")


def test_nobody_else_is_served(site: Site) -> None:
    ca_file, _, certificate = (site.signed("anna")[start : start + 2] for start in (0, 2, 4))
    key = site.signed("anna")[6:]
    assert "TOKEN_MISSING" in site.halfreel(*ca_file, *certificate, *key, "films", code=1)
    assert "no gateway answers" in site.halfreel(*ca_file, "films", code=3)
    assert "no gateway answers" in site.halfreel("films", code=3)


@pytest.mark.parametrize("name", SERVICES)
def test_metrics_are_read_with_a_token_and_probes_without(site: Site, name: str) -> None:
    token = site.token("anna").read_text().strip()
    assert [site.http(name, path, None) for path in ("/livez", "/readyz", "/metrics")] == [200, 200, 401]
    assert site.http(name, "/metrics", token) == 200


def test_a_gateway_whose_token_is_refused_waits_until_it_has_another(site: Site) -> None:
    site.halfreel("tokens", "revoke", "--file", str(site.tokens), "--name", "gateway")
    time.sleep(1.1)
    idea = ("make", "a blue square", "--scenes", "1", "--seconds", "1", "--detach")
    film_id = site.halfreel(*site.signed("anna"), *idea).strip()

    def film() -> Any:
        films = site.halfreel(*site.signed("anna"), "films", "--json").splitlines()
        [found] = [film for film in map(json.loads, films) if film["film_id"] == film_id]
        return found

    until(lambda: "does not take the gateway's token" in film()["waiting_reason"])
    site.add("gateway", "generate,read")
    until(lambda: film()["state"] == "succeeded")


def until(true: Callable[[], bool], within_s: float = 60) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_revoked_token_and_a_new_certificate_need_no_restart(site: Site) -> None:
    site.add("carl", "read")
    time.sleep(1.1)
    assert "no films yet" in site.halfreel(*site.signed("carl"), "films")
    site.halfreel("tokens", "revoke", "--file", str(site.tokens), "--name", "carl")
    site.halfreel("certs", str(site.certs))
    time.sleep(1.1)
    assert "TOKEN_INVALID" in site.halfreel(*site.signed("carl"), "films", code=1)
    site.halfreel(*site.signed("anna"), "films")
    secrets = [site.token(name).read_text().strip() for name in ("anna", "berta", "carl", "gateway")]
    logs: Any = "".join(path.read_text() for path in (site.folder / "data" / "logs").glob("*.log"))
    assert "tls_reloaded" in logs
    assert not [secret for secret in secrets if secret in logs]
