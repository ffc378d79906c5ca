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

from halfreel_runtime.scopes import METHOD_SCOPES

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
# Calls every method of the contract, and reflection's, at every server with every token that it should refuse.
CALL_ALL = """
import json, sys
import grpc
from every_method import METHODS
from halfreel_runtime.scopes import METHOD_SCOPES
servers, ca, tokens = json.loads(sys.argv[1])
tokens = {name: open(path).read().strip() for name, path in tokens.items()}
methods = {method.path: method.streams for method in METHODS}
methods |= {f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo": True for version in ("v1", "v1alpha")}
refused = []
for server, (port, foreign, known) in servers.items():
    credentials = grpc.ssl_channel_credentials(open(ca, "rb").read())
    shown = {"none": (), "bad": (("authorization", "Bearer hr_" + "x" * 43),)}
    shown |= {name: (("authorization", f"Bearer {tokens[name]}"),) for name in (*foreign, *known)}
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
        for path, streams in methods.items():
            for name, metadata in shown.items():
                if METHOD_SCOPES.get(path) in known.get(name, ()):
                    continue
                call = channel.unary_stream(path) if streams else channel.unary_unary(path)
                try:
                    answer = call(b"", metadata=metadata, timeout=10)
                    outcome = "OK" if not streams else repr(list(answer))
                except grpc.RpcError as error:
                    outcome = error.code().name
                expected = "PERMISSION_DENIED" if name in known else "UNAUTHENTICATED"
                assert outcome == expected, (server, path, name, outcome)
                refused.append((server, path, name))
print(json.dumps(refused))
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


def dockerfile(service: str) -> Path:
    return ROOT / str(COMPOSE["services"][service]["build"]["dockerfile"])


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
                read_stages(dockerfile(service))[-1],
                environment(dockerfile(service).stem),
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


@pytest.mark.namespaces
@pytest.mark.timeout(900)
def test_no_server_lets_in_whom_it_should_not(stack: dict[str, Contained], secrets: Path) -> None:
    """The tokens are those of secrets.sh: who is good for one kind of server is a stranger to the other."""
    ports = {service: read_stages(dockerfile(service))[-1].one("EXPOSE").split()[0] for service in SERVICES}
    strangers = {"llm": ["client"], "video": ["client"], "gateway": ["model"]}
    known = {"llm": {"model": ["generate", "read"], "metrics": ["read"]}, "gateway": {"metrics": ["read"]}}
    known["video"] = known["llm"]
    servers = {service: (ports[service], strangers[service], known[service]) for service in SERVICES}
    tokens = {name: str(secrets / f"{name}-token") for name in ("client", "model", "metrics")}
    arguments = json.dumps([servers, str(secrets / "ca.pem"), tokens])
    path = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    printed = outside(stack, [sys.executable, "-c", CALL_ALL, arguments], {"PYTHONPATH": path}, timeout_s=120)
    refused = {tuple(each) for each in json.loads(printed)}
    for service in SERVICES:
        assert {path for server, path, name in refused if (server, name) == (service, "none")} > set(METHOD_SCOPES)
        assert (service, "/halfreel.gpu.v1.MemoryService/Sleep", "metrics") in refused
