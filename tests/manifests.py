"""The compose files and the Kubernetes manifests as data, and the settings that servers know, for the tests of both."""

from __future__ import annotations

import subprocess
from functools import cache
from typing import Any

import yaml
from dockerfile import ROOT

from halfreel_gateway.settings import GatewaySettings
from halfreel_llm.settings import LlmSettings
from halfreel_runtime.settings import ServerSettings, read_settings
from halfreel_video.settings import VideoSettings

SERVICES: dict[str, type[ServerSettings]] = {"gateway": GatewaySettings, "llm": LlmSettings, "video": VideoSettings}
COMPOSE = ("laptop", "one-gpu", "two-gpus")
OVERLAYS = ("one-gpu", "many")


def read_compose(name: str) -> dict[str, Any]:
    text = (ROOT / "deploy" / "compose" / f"{name}.yaml").read_text(encoding="utf-8")
    loaded = yaml.safe_load(text)
    assert isinstance(loaded, dict)
    return loaded


@cache
def render(overlay: str) -> list[dict[str, Any]]:
    """The objects of an overlay, as kubectl renders them."""
    folder = ROOT / "deploy" / "kubernetes" / overlay
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def of_kind(objects: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    """The objects of a kind by name."""
    return {each["metadata"]["name"]: each for each in objects if each["kind"] == kind}


def settings_of(service: str, environ: dict[str, str]) -> ServerSettings:
    """The settings that a server would have; fails where it would refuse to start over a name or a value."""
    return read_settings(SERVICES[service], service, [], environ)
