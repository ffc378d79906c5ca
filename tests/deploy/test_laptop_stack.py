"""The laptop's compose file, carried out by hand: its three servers with its settings and secrets, and a film."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import pytest
import yaml
from contained import Contained, contained
from dockerfile import ROOT, read_stages
from manifests import SERVICES, read_compose

COMPOSE = read_compose("laptop")
# Prometheus's own way, with its own file: the certificate is checked against the target's name, and the token shown.
SCRAPE = """
import json, ssl, sys, urllib.error, urllib.request
address, ca, token = sys.argv[1:]
request = urllib.request.Request(f"https://{address}/metrics")
if token:
    request.add_header("Authorization", f"Bearer {open(token).read().strip()}")
try:
    with urllib.request.urlopen(request, timeout=10, context=ssl.create_default_context(cafile=ca)) as reply:
        print(json.dumps([reply.status, reply.read().decode()]))
except urllib.error.HTTPError as error:
    print(json.dumps([error.code, ""]))
"""


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What secrets.sh makes, in a checkout of its own."""
    folder = tmp_path_factory.mktemp("checkout") / "deploy" / "compose"
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "deploy" / "compose" / "secrets.sh", folder)
    environ = {**os.environ, "HALFREEL": str(Path(sys.executable).parent / "halfreel")}
    for _ in range(2):  # the second time it renews the certificate, and keeps the rest
        done = subprocess.run([str(folder / "secrets.sh")], env=environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return folder / "secrets"


def mounted(service: str, secrets: Path, folder: Path) -> Path:
    """A service's secrets by their names in the compose file, with the rights that secrets.sh gave them."""
    folder.mkdir(mode=0o755)
    for name in COMPOSE["services"][service]["secrets"]:
        source = secrets / Path(COMPOSE["secrets"][name]["file"]).name
        shutil.copy2(source, folder / name)
        os.chown(folder / name, source.stat().st_uid, source.stat().st_gid)
    return folder


@pytest.fixture(scope="module")
def stack(
    environment: Callable[[str], Path], secrets: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Contained]]:
    with contextlib.ExitStack() as exits:
        servers: dict[str, Contained] = {}
        for service in ("llm", "video", "gateway"):
            spec = COMPOSE["services"][service]
            folder = tmp_path_factory.mktemp(f"{service}-state")
            server = contained(
                read_stages(ROOT / spec["build"]["dockerfile"])[-1],
                environment(Path(spec["build"]["dockerfile"]).stem),
                folder,
                environ=spec["environment"],
                secrets=mounted(service, secrets, folder / "secrets"),
                beside=servers.get("llm"),
                hosts=list(SERVICES),
            )
            servers[service] = exits.enter_context(server)
            for name in spec.get("depends_on", {}):
                servers[name].wait_healthy(timeout_s=180)
        servers["gateway"].wait_healthy(timeout_s=60)
        yield servers
        for service, server in servers.items():
            assert server.stop(timeout_s=60) == 0, f"{service}: {server.tail}"


def outside(stack: dict[str, Contained], command: list[str], environ: dict[str, str], timeout_s: float) -> str:
    """What a program prints that is no container but reaches the gateway's published port."""
    inside = ["nsenter", f"--target={stack['gateway'].process.pid}", "--net"]
    done = subprocess.run(
        [*inside, *command], env={**os.environ, **environ}, capture_output=True, text=True, timeout=timeout_s
    )
    assert done.returncode == 0, done.stdout + done.stderr + stack["gateway"].tail
    return done.stdout


@pytest.mark.namespaces
@pytest.mark.timeout(900)
def test_a_film_is_made_over_tls_with_a_token(stack: dict[str, Contained], secrets: Path, tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    halfreel = str(Path(sys.executable).parent / "halfreel")
    command = [halfreel, "make", "a red circle moving over a blue sky", "--output", str(film), "--scenes", "1"]
    outside(
        stack,
        [*command, "--address", "localhost:7600"],
        {"HALFREEL_CA_FILE": str(secrets / "ca.pem"), "HALFREEL_TOKEN_FILE": str(secrets / "client-token")},
        timeout_s=300,
    )
    with av.open(str(film)) as opened:
        assert sum(1 for _ in opened.decode(video=0)) > 1


@pytest.mark.namespaces
@pytest.mark.timeout(900)
def test_prometheus_may_read_the_metrics_and_nobody_without_its_token(
    stack: dict[str, Contained], secrets: Path, tmp_path: Path
) -> None:
    (job,) = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    folder = mounted("prometheus", secrets, tmp_path / "secrets")
    ca, token = (
        str(folder / Path(name).name)
        for name in (job["tls_config"]["ca_file"], job["authorization"]["credentials_file"])
    )
    for target in job["static_configs"][0]["targets"]:
        for shown, expected in ((token, 200), ("", 401)):
            script = ["python", "-c", SCRAPE, target, ca, shown]
            hosts = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/hosts; exec "$@"']
            names = stack["gateway"].log.parent / "hosts"
            status, text = json.loads(outside(stack, [*hosts, str(names), *script], {}, timeout_s=30))
            assert status == expected, target
            assert ("halfreel_build_info{" in text) is (expected == 200)
