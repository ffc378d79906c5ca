"""The images: what they hold, and that their install steps give a server that starts as a container would start it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from contained import contained
from dockerfile import ROOT, Stage, read_stages
from manifests import settings_of

IMAGES = ("gateway", "llm", "video", "llm-cuda", "video-cuda")
MEBIBYTE = 2**20
GATEWAY_MAX_BYTES = 300 * MEBIBYTE

# Each must fail in a container: what it tries, and the error that it gets.
ATTEMPTS = """
import ctypes, os, socket
def denied(attempt):
    try:
        attempt()
    except OSError as error:
        print(type(error).__name__, error.errno)
    else:
        raise SystemExit("allowed")
denied(lambda: open("/usr/share/planted", "w"))
denied(lambda: open("/opt/halfreel/lib/planted.pth", "w"))
denied(lambda: os.setuid(0))
denied(lambda: socket.create_connection(("203.0.113.1", 443), timeout=2))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.mount(b"none", b"/tmp", b"tmpfs", 0, None) == -1, "mounted"
print("mount", ctypes.get_errno())
open("/tmp/allowed", "w").write("x")
open("/var/lib/halfreel/allowed", "w").write("x")
"""
GRPC_HEALTH = """
import grpc, sys
from grpc_health.v1 import health_pb2, health_pb2_grpc
channel = grpc.insecure_channel(sys.argv[1])
answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=sys.argv[2]), timeout=10)
print(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
"""


def stages(image: str) -> list[Stage]:
    return read_stages(ROOT / "deploy" / "docker" / f"{image}.Dockerfile")


def size_bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


@pytest.mark.namespaces
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "image", [*IMAGES[:3], *(pytest.param(image, marks=pytest.mark.cuda_images) for image in IMAGES[3:])]
)
def test_install_steps_give_a_server_that_answers(
    image: str, environment: Callable[[str], Path], tmp_path: Path
) -> None:
    service, venv, final = image.removesuffix("-cuda"), environment(image), stages(image)[-1]
    packages = next(venv.glob("lib/python3.*/site-packages"))
    names = {path.name for path in packages.iterdir()}
    print(f"{image}: site-packages {size_bytes(packages) / MEBIBYTE:.0f} MiB")
    pip = venv.parent / "build" / "tools" / "bin" / "pip"
    checked = subprocess.run([str(pip), "--python", str(venv), "check"], capture_output=True, text=True)
    # What the pocket models are trained and built with is not needed to load one.
    missing = {line for line in checked.stdout.splitlines() if not line.startswith("halfreel-pocket ")}
    assert missing <= {"No broken requirements found."}, checked.stdout
    assert "pip" not in names
    if service == "gateway":
        assert not names & {"torch", "transformers", "diffusers", "halfreel_pocket"}
        assert size_bytes(packages) <= GATEWAY_MAX_BYTES
    else:
        assert "torch" in names

    # Of CUDA's images all but the GPU: there is none here.
    device = {} if service == "gateway" else {f"HALFREEL_{service.upper()}_DEVICE": "cpu"}
    with contained(final, venv, tmp_path, environ=device) as server:
        server.wait_healthy(timeout_s=180)
        port = final.one("EXPOSE").split()[0]
        full_name = f"halfreel.{service}.v1.{service.title()}Service"
        asked = server.run(["python", "-c", GRPC_HEALTH, f"127.0.0.1:{port}", full_name])
        assert asked.stdout.strip() == "SERVING", asked.stderr + server.tail
        tried = server.run(["python", "-c", ATTEMPTS])
        assert tried.returncode == 0, tried.stdout + tried.stderr
        assert server.stop(timeout_s=60) == 0, server.tail


@pytest.mark.parametrize("image", IMAGES)
def test_images_are_linted(image: str) -> None:
    folder = ROOT / "deploy" / "docker"
    done = subprocess.run(
        ["hadolint", "--config", str(folder / ".hadolint.yaml"), str(folder / f"{image}.Dockerfile")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("image", IMAGES)
def test_images_start_what_they_are_named_after_with_settings_that_it_has(image: str) -> None:
    service, final = image.removesuffix("-cuda"), stages(image)[-1]
    assert final.words("ENTRYPOINT") == ["python", "-m", f"halfreel_{service}"]
    assert final.health_check == ["python", "-m", "halfreel_runtime.healthcheck", service]
    environ = {name: value for name, value in final.pairs("ENV").items() if name.startswith("HALFREEL_")}
    settings = settings_of(service, environ)
    assert final.one("EXPOSE").split() == [str(settings.port), str(settings.metrics_port)]
    assert settings.host == "127.0.0.1"  # whoever runs it opens it, and must then protect it
    assert final.one("USER") == "10001:10001"
    assert {stage.base for stage in stages(image)} == {"python:3.11.14-slim-bookworm"}
