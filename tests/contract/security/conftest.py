"""A real gateway process that asks for tokens, between the test and two scripted model servers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway_doubles import LLM, VIDEO, LlmDouble, Serving, VideoDouble
from gateway_process import Gateway
from sign_in import Keyring


@pytest.fixture(scope="module")
def keyring(tmp_path_factory: pytest.TempPathFactory) -> Keyring:
    keyring = Keyring(tmp_path_factory.mktemp("keys"))
    for name in ("anna", "berta"):
        keyring.add(name, "generate", "read")
    keyring.add("boss", "generate", "read", "admin")
    return keyring


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, keyring: Keyring) -> Iterator[Gateway]:
    folder: Path = tmp_path_factory.mktemp("gateway")
    servers = [Serving(LLM, LlmDouble()), Serving(VIDEO, VideoDouble(folder))]
    gateway = Gateway(folder, [servers[0].address], [servers[1].address], tokens_file=keyring.path)
    gateway.start()
    yield gateway
    assert gateway.stop() == 0
    for serving in servers:
        serving.down()
