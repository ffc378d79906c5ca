"""The compose files: valid, safe by default, and true to what the servers and the images need."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
import yaml
from dockerfile import ROOT, read_stages
from manifests import COMPOSE, SERVICES, read_compose, settings_of

FOLDER = ROOT / "deploy" / "compose"


@pytest.mark.parametrize("name", COMPOSE)
def test_files_are_valid(name: str) -> None:
    command = ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(FOLDER / f"{name}.yaml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", COMPOSE)
def test_what_is_named_is_there(name: str) -> None:
    compose = read_compose(name)
    for service, spec in compose["services"].items():
        assert set(spec.get("networks", [])) <= set(compose["networks"]), service
        assert set(spec.get("secrets", [])) <= set(compose["secrets"]), service
        assert set(spec.get("depends_on", {})) <= set(compose["services"]), service
        for volume in spec["volumes"]:
            source = volume.split(":")[0] if not volume.startswith("$") else ""
            if source.startswith("."):
                assert (FOLDER / source).is_dir(), source
            elif source:
                assert source in compose["volumes"], source
    used = {each.split(":")[0] for spec in compose["services"].values() for each in spec["volumes"]}
    assert set(compose["volumes"]) <= used
    assert set(compose["secrets"]) == {each for spec in compose["services"].values() for each in spec["secrets"]}


@pytest.mark.parametrize("name", COMPOSE)
def test_containers_have_no_more_rights_than_they_need(name: str) -> None:
    compose = read_compose(name)
    assert compose["networks"]["servers"] == {"internal": True}
    for service, spec in compose["services"].items():
        assert spec["read_only"] is True, service
        assert spec["cap_drop"] == ["ALL"], service
        assert spec["security_opt"] == ["no-new-privileges:true"], service
        assert {"memory", "pids"} <= set(spec["deploy"]["resources"]["limits"]), service
        assert not {"privileged", "cap_add", "network_mode", "pid", "user"} & set(spec), service
        for port in spec.get("ports", []):
            assert port.startswith(("127.0.0.1:", "${HALFREEL_LISTEN:-127.0.0.1}:")), port
    for service in ("llm", "video"):
        assert compose["services"][service]["networks"] == ["servers"]


@pytest.mark.parametrize("name", COMPOSE)
@pytest.mark.parametrize("service", SERVICES)
def test_servers_take_their_settings_and_drain_in_time(name: str, service: str) -> None:
    spec = read_compose(name)["services"][service]
    environ = {key: defaulted(value) for key, value in spec["environment"].items()}
    settings: Any = settings_of(service, environ)
    assert settings.host == "0.0.0.0"
    assert not settings.allow_insecure_listen
    files = [settings.tls_certificate_file, settings.tls_key_file, settings.tokens_file]
    if service == "gateway":
        files += [settings.model_ca_file, settings.model_token_file]
        assert (settings.llm_addresses, settings.video_addresses) == (("llm:7601",), ("video:7602",))
    assert sorted(f"/run/secrets/{each}" for each in spec["secrets"]) == sorted(map(str, files))
    assert int(spec["stop_grace_period"].removesuffix("s")) >= settings.grace_s + 10
    dockerfile = ROOT / spec["build"]["dockerfile"]
    assert spec["image"] == f"halfreel-{dockerfile.stem}:0.1.0"
    volumes = set(json.loads(read_stages(dockerfile)[-1].one("VOLUME")))
    assert volumes <= {each.rsplit(":", 1)[-1] for each in spec["volumes"]}


def test_gpus_are_given_by_id() -> None:
    def devices(name: str, service: str) -> list[str]:
        (device,) = read_compose(name)["services"][service]["deploy"]["resources"]["reservations"]["devices"]
        assert device["driver"] == "nvidia"
        return [defaulted(each) for each in device["device_ids"]]

    assert devices("one-gpu", "llm") == devices("one-gpu", "video") == ["0"]
    assert (devices("two-gpus", "llm"), devices("two-gpus", "video")) == (["0"], ["1"])
    for service in ("llm", "video"):
        assert "reservations" not in read_compose("laptop")["services"][service]["deploy"]["resources"]


def test_servers_of_one_gpu_share_the_folder_of_their_turns() -> None:
    compose = read_compose("one-gpu")
    for service in ("llm", "video"):
        spec = compose["services"][service]
        environ = {key: defaulted(value) for key, value in spec["environment"].items()}
        settings: Any = settings_of(service, environ)
        assert (settings.turns, str(settings.turns_dir)) == ("auto", "/run/halfreel")
        assert "turns:/run/halfreel" in spec["volumes"]
        for alone in ("laptop", "two-gpus"):
            assert (
                f"HALFREEL_{service.upper()}_TURNS_DIR" not in read_compose(alone)["services"][service]["environment"]
            )
    # Theirs alone, or they would not take it.
    assert compose["volumes"]["turns"]["driver_opts"]["o"].split(",")[1:] == ["uid=10001", "gid=10001", "mode=0700"]


def test_prometheus_reads_every_server_by_https_and_with_a_token() -> None:
    (job,) = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    targets = {target for group in job["static_configs"] for target in group["targets"]}
    assert targets == {f"{service}:{settings_of(service, {}).metrics_port}" for service in SERVICES}
    assert job["scheme"] == "https"
    secrets = read_compose("laptop")["services"]["prometheus"]["secrets"]
    named = [job["tls_config"]["ca_file"], job["authorization"]["credentials_file"]]
    assert [f"/run/secrets/{each}" for each in secrets] == named


def defaulted(value: str) -> str:
    """What ${NAME:-default} gives where NAME is not set."""
    return value.split(":-", 1)[1].removesuffix("}") if value.startswith("${") else value
