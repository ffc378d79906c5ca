"""Mistakes in what the three real servers are given: each ends their start with one line that names it, and code 2."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from manifests import SERVICES
from sign_in import LOOPBACK_NAMES, Keyring

from halfreel_client.certificates import Files, make_certificates

ENDED_WITHIN_S = 120
UNKNOWN_GPU = "GPU-00000000-0000-0000-0000-000000000000"


@pytest.fixture
def given(tmp_path: Path) -> dict[str, object]:
    """What is right, before a test makes one thing of it wrong."""
    files = make_certificates(tmp_path / "certs", LOOPBACK_NAMES, 30)
    keyring = Keyring(tmp_path)
    keyring.add("anna", "read")
    return {
        "host": "0.0.0.0",
        "tls_certificate_file": files.certificate("server"),
        "tls_key_file": files.key("server"),
        "tokens_file": keyring.path,
    }


def expired(given: dict[str, object], folder: Path) -> None:
    old = make_certificates(folder / "old", LOOPBACK_NAMES, 30, now=datetime.now(UTC) - timedelta(days=31))
    given |= {"tls_certificate_file": old.certificate("server"), "tls_key_file": old.key("server")}


def another_key(given: dict[str, object], folder: Path) -> None:
    given["tls_key_file"] = Files(folder / "certs").key("client")


def readable_by_others(given: dict[str, object], folder: Path) -> None:
    Path(str(given["tokens_file"])).chmod(0o644)


def no_tokens(given: dict[str, object], folder: Path) -> None:
    del given["tokens_file"]


# Every server reads these by the same code, and a model server takes seconds to come to it: all three are tried once.
@pytest.mark.parametrize(
    ("mistake", "told", "services"),
    [
        (expired, "certificate has expired", tuple(SERVICES)),
        (another_key, "is not the key of tls_certificate_file", ("gateway",)),
        (readable_by_others, "has the rights 0644", ("gateway",)),
        (no_tokens, "only loopback (127.0.0.1, ::1) may be listened on without", ("gateway",)),
    ],
)
def test_certificates_and_tokens(
    given: dict[str, object],
    tmp_path: Path,
    mistake: Callable[[dict[str, object], Path], None],
    told: str,
    services: tuple[str, ...],
) -> None:
    mistake(given, tmp_path)
    for service, reason in refusals(tmp_path, dict.fromkeys(services, given)).items():
        assert told in reason, f"{service}: {reason}"


@pytest.mark.parametrize("setting", ["port", "metrics_port"])
def test_two_servers_on_one_port(tmp_path: Path, setting: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (reason,) = refusals(tmp_path, {"gateway": {setting: port}}).values()
    assert reason.startswith(f"{setting} {port} of 127.0.0.1 can't be listened on (Address already in use)")
    assert f"HALFREEL_GATEWAY_{setting.upper()}" in reason


def test_a_machine_without_that_gpu(tmp_path: Path) -> None:
    """It hears of no GPU, whatever the machine has."""
    wanted = {"llm": "cuda:0", "video": UNKNOWN_GPU}
    given = {service: {"device": device} for service, device in wanted.items()}
    for service, reason in refusals(tmp_path, given, CUDA_VISIBLE_DEVICES="").items():
        assert reason == f"device is '{wanted[service]}'; this machine has no GPU that torch can use."


def refusals(folder: Path, given: Mapping[str, Mapping[str, object]], **environ: str) -> dict[str, str]:
    """The reason that each server gives for not starting, by service; they are started together."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HALFREEL_")} | environ
    started = {}
    for service, settings in given.items():
        own: dict[str, object] = {"port": 0, "metrics_port": 0}
        own |= {"data_dir": folder / "data"} if service == "gateway" else {"device": "cpu"}
        variables = {f"HALFREEL_{service}_{name}".upper(): str(value) for name, value in (own | settings).items()}
        command = [sys.executable, "-m", f"halfreel_{service}"]
        started[service] = subprocess.Popen(command, env=clean | variables, stderr=subprocess.PIPE, text=True)
    reasons = {}
    try:
        for service, process in started.items():
            _, stderr = process.communicate(timeout=ENDED_WITHIN_S)
            lines = [json.loads(line) for line in stderr.splitlines()]  # a traceback would be no JSON
            assert process.returncode == 2, f"{service}: {stderr}"
            (error,) = (line for line in lines if line["level"] == "error")
            assert error["event"] in ("not_started", "not_listening")
            reasons[service] = error["reason"]
    finally:
        for process in started.values():
            process.kill()
    return reasons
