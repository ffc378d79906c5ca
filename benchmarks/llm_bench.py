"""What the benchmarks of the language model share: a server on a model of the real shape, and the result's file."""

import contextlib
import json
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

ROOT = Path(__file__).resolve().parents[1]
SERVICE = "halfreel.llm.v1.LlmService"
# Words of the made tokenizer's pieces, so that a prompt has about as many tokens as words.
WORDS = (
    *("red", "blue", "green", "yellow", "circle", "square", "star", "moon", "ship", "whale"),
    *("city", "forest", "river", "mountain", "light", "house", "night"),
)


def make_folder(folder: Path, *, tiny: bool) -> float:
    """Writes a model of ChatGLM3-6B's shape whose replies never end by themselves, if it is not there; in seconds."""
    began = time.monotonic()
    if not (folder / "config.json").is_file():
        command = [sys.executable, str(ROOT / "tests" / "gpu" / "make_chatglm3.py"), str(folder), "--endless"]
        subprocess.run([*command, *(["--tiny"] if tiny else [])], check=True)
    return time.monotonic() - began


@dataclass
class Server:
    """A running server: where it is, and how long it took from the start of its process until it served."""

    port: int
    serving_s: float
    process: subprocess.Popen[bytes]

    @property
    def address(self) -> str:
        """For a channel."""
        return f"127.0.0.1:{self.port}"


@contextlib.contextmanager
def serving(folder: Path, *flags: str, log: Path, within_s: float = 120.0) -> Iterator[Server]:
    """Starts a server as people do, waits until it serves, and stops it."""
    ports = log.with_suffix(".ports")
    ports.unlink(missing_ok=True)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HALFREEL_")}
    command = [sys.executable, "-m", "halfreel_llm", "--model", str(folder), "--port", "0", "--metrics-port", "0"]
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--port-file", str(ports), *flags], env=environment, stdout=output, stderr=output
        )
    try:
        while not ports.is_file():
            if process.poll() is not None or time.monotonic() > began + within_s:
                raise RuntimeError(log.read_text()[-3000:])
            time.sleep(0.02)
        port = json.loads(ports.read_text())["port"]
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            health = health_pb2_grpc.HealthStub(channel)
            question = health_pb2.HealthCheckRequest(service=SERVICE)
            while health.Check(question).status != health_pb2.HealthCheckResponse.SERVING:
                if process.poll() is not None or time.monotonic() > began + within_s:
                    raise RuntimeError(log.read_text()[-3000:])
                time.sleep(0.02)
        yield Server(port, time.monotonic() - began, process)
    finally:
        process.terminate()
        process.wait(30)


def prompt_of(seed: int, words: int) -> str:
    """Words in an order that no other seed has."""
    drawn = random.Random(seed)
    return " ".join(drawn.choice(WORDS) for _ in range(words))


def card() -> str:
    """The last word of the GPU's name, or "cpu"."""
    import torch

    return torch.cuda.get_device_name().split()[-1].lower() if torch.cuda.is_available() else "cpu"


def result_of(figures: dict[str, Any], *, where: str, libraries: tuple[str, ...]) -> str:
    """The line that a benchmark ends with."""
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=ROOT)
    result = {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "card": where,
        "commit": head.stdout.strip(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in libraries},
        "figures": {name: round(value, 4) if isinstance(value, float) else value for name, value in figures.items()},
    }
    return json.dumps(result)


def write_result(line: str, name: str, where: str) -> None:
    """Keeps the line in benchmarks/results/."""
    path = ROOT / "benchmarks" / "results" / f"{name}-{where}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(line + "\n", encoding="utf-8")
