"""ChatGLM3-6B at its real size, random weights: the LLM server as a process of its own, one Generate over gRPC.

What the server says of its memory is held against what the driver saw the process take. Prints one JSON line.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pynvml
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from halfreel.gpu.v1 import gpu_pb2
from halfreel.llm.v1 import llm_pb2, llm_pb2_grpc

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(580)]

MIB = 2**20
TOLERANCE_BYTES = 64 * MIB
PARAMETER_COUNT = 6_243_584_000
STARTS_WITHIN_S = 300.0
SERVICE_NAME = "halfreel.llm.v1.LlmService"
MAKE = Path(__file__).with_name("make_chatglm3.py")


class UsedBytes:
    """The most bytes in use on a device, sampled every 10 ms, beyond what was in use at the beginning."""

    def __init__(self, read: Callable[[], int]) -> None:
        self._read = read
        self._before = read()
        self._most = self._before
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._stop.wait(0.01):
            self._most = max(self._most, self._read())

    def close(self) -> int:
        self._stop.set()
        self._thread.join()
        return max(self._most, self._read()) - self._before


@contextlib.contextmanager
def server(folder: Path, *flags: str) -> Iterator[tuple[Any, Any]]:
    """Runs the server until it is SERVING; gives its stub and the channel."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HALFREEL_")}
    port_file = folder / "ports.json"
    command = [sys.executable, "-m", "halfreel_llm", "--model", str(folder), "--port", "0", "--metrics-port", "0"]
    process = subprocess.Popen([*command, "--port-file", str(port_file), *flags], env=environment)
    try:
        deadline = time.monotonic() + STARTS_WITHIN_S
        while not port_file.is_file():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with grpc.insecure_channel(f"127.0.0.1:{json.loads(port_file.read_text())['port']}") as channel:
            health = health_pb2_grpc.HealthStub(channel)
            asked = health_pb2.HealthCheckRequest(service=SERVICE_NAME)
            while health.Check(asked).status != health_pb2.HealthCheckResponse.SERVING:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield llm_pb2_grpc.LlmServiceStub(channel), process
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def write_once(stub: Any, *, words: int, tokens: int) -> dict[str, Any]:
    """One reply; returns its figures."""
    turn = llm_pb2.Message(role=llm_pb2.ROLE_USER, content="a red circle moves over a blue sky " * (words // 8))
    asked = llm_pb2.GenerateRequest(messages=[turn], max_output_token_count=tokens, temperature=0.8, seed=1)
    # Keeps the reply from ending early: a random model may draw a control token at any time.
    asked.json_schema = '{"type":"array","items":{"enum":[0,1]},"minItems":100000}'
    began = time.monotonic()
    events = list(stub.Generate(asked))
    wall_s = time.monotonic() - began
    kinds = [event.WhichOneof("event") for event in events]
    assert (kinds[0], kinds[-1]) == ("queued", "completed")
    done = events[-1].completed
    assert done.output_token_count == tokens
    decode_s = (done.generate_duration.ToNanoseconds() - done.time_to_first_token.ToNanoseconds()) / 1e9
    return {
        "dtype": done.dtype,
        "prompt_tokens": done.prompt_token_count,
        "output_tokens": done.output_token_count,
        "wall_s": round(wall_s, 3),
        "first_token_ms": round(done.time_to_first_token.ToNanoseconds() / 1e6, 2),
        "ms_per_token": round(1000 * decode_s / (tokens - 1), 3),
        "phase_peaks": {
            each.phase: {
                "allocated_bytes": each.peak.allocated_bytes,
                "reserved_bytes": each.peak.reserved_bytes,
                "predicted_bytes": each.predicted_reserved_bytes,
            }
            for each in done.phase_peaks
        },
    }


def measure(folder: Path, read_used: Callable[[], int], *flags: str, words: int, tokens: int) -> dict[str, Any]:
    """Runs the server once; returns what it said of its memory and what was seen from outside."""
    used = UsedBytes(read_used)
    began = time.monotonic()
    with server(folder, *flags) as (stub, _):
        serving_s = time.monotonic() - began
        model = stub.GetModel(llm_pb2.GetModelRequest())
        reply = write_once(stub, words=words, tokens=tokens)
        (device,) = stub.MemoryStatus(llm_pb2.MemoryStatusRequest()).report.devices
        seen_bytes = used.close()
    said_bytes = device.process_peak.reserved_bytes + device.context_bytes
    return {
        "test": "llm_real_size",
        "device": device.device_name,
        "device_kind": gpu_pb2.DeviceKind.Name(device.device_kind),
        "architecture": model.architecture,
        "parameter_count": model.parameter_count,
        "weight_bytes": model.weight_bytes,
        "serving_s": round(serving_s, 2),
        "peak_allocated_bytes": device.process_peak.allocated_bytes,
        "peak_reserved_bytes": device.process_peak.reserved_bytes,
        "context_bytes": device.context_bytes,
        "said_bytes": said_bytes,
        "seen_bytes": seen_bytes,
        "difference_bytes": said_bytes - seen_bytes,
        "load_peak": {each.phase: each.peak.reserved_bytes for each in device.phase_peaks if each.phase == "load"},
        "reply": reply,
    }


@pytest.fixture
def folder() -> Iterator[Path]:
    """The model's files, 12.5 GB: in memory where there is room, since disks of test machines are slow."""
    memory = Path("/dev/shm")
    place = memory if memory.is_dir() and shutil.disk_usage(memory).free > 2**34 else None
    made = Path(tempfile.mkdtemp(prefix="chatglm3-", dir=place))
    try:
        # In a process of its own, so that this one holds nothing of the GPU.
        subprocess.run([sys.executable, str(MAKE), str(made)], check=True, timeout=300)
        yield made
    finally:
        shutil.rmtree(made)


def test_memory_is_what_the_driver_saw(folder: Path) -> None:
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    # Device 0 of the driver may not be torch's: the server is told by UUID.
    gpu_uuid = pynvml.nvmlDeviceGetUUID(handle)

    def used() -> int:
        return int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)

    figures = measure(folder, used, "--device", gpu_uuid, words=512, tokens=128)
    print(json.dumps(figures))
    assert figures["device_kind"] == "DEVICE_KIND_CUDA"
    assert figures["reply"]["dtype"] == "float16"
    assert figures["parameter_count"] == PARAMETER_COUNT
    assert figures["weight_bytes"] == 2 * PARAMETER_COUNT
    assert figures["weight_bytes"] < figures["load_peak"]["load"] < 1.2 * figures["weight_bytes"], "a second copy"
    assert figures["weight_bytes"] < figures["peak_reserved_bytes"] < 1.5 * figures["weight_bytes"]
    assert abs(figures["difference_bytes"]) <= TOLERANCE_BYTES
    for peak in figures["reply"]["phase_peaks"].values():
        assert abs(peak["reserved_bytes"] - peak["predicted_bytes"]) <= 0.02 * peak["predicted_bytes"]
