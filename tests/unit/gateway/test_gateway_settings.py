"""The gateway's settings, its addresses, its doctor, and how little it needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from halfreel_gateway import doctor, memory
from halfreel_gateway.channels import target
from halfreel_gateway.settings import GatewaySettings
from halfreel_runtime.server_settings import ServerSettings
from halfreel_runtime.settings import SettingsError, read_settings


@pytest.mark.parametrize(
    ("addresses", "wanted"),
    [
        (["127.0.0.1:7601"], "ipv4:127.0.0.1:7601"),
        (["10.0.0.1:1", "10.0.0.2:2"], "ipv4:10.0.0.1:1,10.0.0.2:2"),
        (["[::1]:1", "[fd00::2]:2"], "ipv6:[::1]:1,[fd00::2]:2"),
        (["video.halfreel.svc:7602"], "dns:///video.halfreel.svc:7602"),
        (["localhost:7602"], "dns:///localhost:7602"),
    ],
)
def test_addresses_as_grpc_names_them(addresses: list[str], wanted: str) -> None:
    assert target(addresses) == wanted


@pytest.mark.parametrize(
    ("addresses", "said"),
    [
        ([], "at least one"),
        (["127.0.0.1"], "host:port"),
        (["127.0.0.1:0"], "host:port"),
        (["127.0.0.1:65536"], "host:port"),
        ([":7601"], "host:port"),
        (["::1:7601"], "host:port"),
        (["http://x:1"], "host:port"),
        (["unix:/tmp/x"], "host:port"),
        (["[nonsense]:1"], "host:port"),
        (["bad_-.name-:1"], "names no host"),
        (["a:1", "b:2"], "one DNS name"),
        (["127.0.0.1:1", "[::1]:1"], "all IPv4 or all IPv6"),
        (["127.0.0.1:1", "localhost:1"], "all IPv4 or all IPv6"),
    ],
)
def test_addresses_that_are_wrong_or_do_not_go_together(addresses: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        target(addresses)


def test_settings_from_the_environment() -> None:
    environment = {
        "HALFREEL_GATEWAY_LLM_ADDRESSES": "10.0.0.1:1, 10.0.0.2:2",
        "HALFREEL_GATEWAY_DATA_DIR": "~/films",
    }
    settings = read_settings(GatewaySettings, "gateway", ["--scene-concurrency", "3"], environment)
    assert settings.llm_addresses == ("10.0.0.1:1", "10.0.0.2:2")
    assert settings.data_dir == Path.home() / "films"
    assert (settings.port, settings.metrics_port, settings.scene_concurrency) == (7600, 7700, 3)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("LLM_ADDRESSES", "localhost:1,127.0.0.1:2", "all IPv4 or all IPv6"),
        ("VIDEO_ADDRESSES", "127.0.0.1", "host:port"),
        ("VIDEO_ADDRESSES", "", "at least one"),
        ("SCENE_CONCURENCY", "2", "SCENE_CONCURRENCY"),
        ("STALL_S", "0", "greater than 0"),
        ("STALL_S", "nan", "finite"),
        ("EXECUTOR_ID", "../x", "match"),
        ("MAX_ACTIVE_FILM_COUNT", "0", "greater than or equal to 1"),
    ],
)
def test_settings_that_are_wrong(name: str, value: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said) as caught:
        read_settings(GatewaySettings, "gateway", [], {f"HALFREEL_GATEWAY_{name}": value})
    assert name in str(caught.value)


def test_no_more_settings_of_its_own_than_one_can_remember() -> None:
    own = set(GatewaySettings.model_fields) - set(ServerSettings.model_fields)
    assert len(own) <= 15


def test_it_needs_no_torch() -> None:
    code = "import sys, halfreel_gateway.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_the_doctor_tells_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--data-dir", str(tmp_path / "new"), "--llm-addresses", "127.0.0.1:1", "--video-addresses", "127.0.0.1:2"]
    assert doctor.main(["--json", *flags]) == 0
    told = json.loads(capsys.readouterr().out)
    checks = {check["name"]: check for check in told["checks"]}
    assert told["ready"]
    assert set(checks) == {"data_dir", "database", "disk", "encoder", "llm", "video"}
    assert not checks["llm"]["ok"]
    assert "127.0.0.1:1" in checks["llm"]["detail"]
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("flag", "value", "failing"),
    [
        ("--min-free-disk-bytes", str(1 << 60), "disk"),
        ("--database-url", "postgresql://nobody@127.0.0.1:1/none", "database"),
        ("--database-url", "mysql://x", "database"),
    ],
)
def test_the_doctor_says_why_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, value: str, failing: str
) -> None:
    assert doctor.main(["--json", "--data-dir", str(tmp_path), flag, value]) == 1
    told = json.loads(capsys.readouterr().out)
    assert not told["ready"]
    assert next(check["name"] for check in told["checks"] if not check["ok"]) == failing


async def test_a_name_stands_for_all_its_addresses() -> None:
    assert await memory.resolve("127.0.0.1:7601") == ["127.0.0.1:7601"]
    assert await memory.resolve("[::1]:7601") == ["[::1]:7601"]
    assert set(await memory.resolve("localhost:7601")) <= {"127.0.0.1:7601", "[::1]:7601"}
    assert await memory.resolve("no-such-host.invalid:7601") == ["no-such-host.invalid:7601"]
