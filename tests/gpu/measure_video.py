"""Renders one clip with a video server of its own process, and holds what the server says of memory against NVML.

Ends with one JSON line: seconds and peak bytes of every phase, and the device's peak as the driver saw it. Without a
GPU (`--device cpu`, small `--width-px` and so on) the driver's figures are absent.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import grpc

from halfreel.video.v1 import video_pb2, video_pb2_grpc

_SAMPLE_S = 0.01
_LOADED_WITHIN_S = 300.0
_FUSED_WITHIN_S = 120.0


class DeviceWatch(threading.Thread):
    """Samples the used bytes of one GPU every 10 ms; NVML alone, so that this process takes none of them itself."""

    def __init__(self, index: int) -> None:
        super().__init__(daemon=True)
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        self.name = pynvml.nvmlDeviceGetName(handle)
        self._used = lambda: int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)
        self._ended = threading.Event()
        self.before_bytes = self.peak_bytes = self._used()

    def run(self) -> None:
        while not self._ended.wait(_SAMPLE_S):
            self.peak_bytes = max(self.peak_bytes, self._used())

    def end(self) -> int:
        """Ends the samples; returns the most that was taken since the start."""
        self._ended.set()
        self.join()
        return self.peak_bytes - self.before_bytes


def start_server(arguments: argparse.Namespace, folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Starts the server; returns it and its port."""
    port_file = folder / "ports.json"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HALFREEL_")}
    flags = {
        "--model": arguments.models / "svd-xt",
        "--keyframe-model": arguments.models / "sd-turbo",
        "--device": arguments.device,
        "--precision": arguments.precision,
        "--port": 0,
        "--metrics-port": 0,
        "--port-file": port_file,
        "--fuse-blocks": str(arguments.fuse_blocks).lower(),
    }
    command = [sys.executable, "-m", "halfreel_video", *(str(part) for flag in flags.items() for part in flag)]
    server = subprocess.Popen(command, env=environment)
    deadline = time.monotonic() + _LOADED_WITHIN_S
    while not port_file.is_file():
        if server.poll() is not None or time.monotonic() > deadline:
            sys.exit("the server did not start; its log is above")
        time.sleep(0.1)
    return server, json.loads(port_file.read_text())["port"]


def wait_loaded(server: subprocess.Popen[bytes], stub: Any) -> Any:
    """Returns what the server says of its model, once it is loaded."""
    deadline = time.monotonic() + _LOADED_WITHIN_S
    while True:
        try:
            return stub.GetModel(video_pb2.GetModelRequest())
        except grpc.RpcError as error:
            if server.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"the model was not loaded: {error}")
        time.sleep(0.2)


def generate(stub: Any, request: Any) -> tuple[Any, str, list[float]]:
    """Renders a clip; returns its last event, its hash and the seconds of its steps."""
    digest, steps = hashlib.sha256(), []
    for event in stub.Generate(request):
        kind = event.WhichOneof("event")
        if kind == "step":
            steps.append(event.step.duration.ToTimedelta().total_seconds())
        elif kind == "video_chunk":
            digest.update(event.video_chunk.data)
    assert event.completed.sha256 == digest.hexdigest()
    return event.completed, digest.hexdigest(), steps


def wait_fused(stub: Any) -> float:
    """Renders small clips until the server runs fused blocks; returns the seconds that took."""
    began = time.monotonic()
    request = video_pb2.GenerateRequest(prompt="warm", width_px=256, height_px=256, frame_count=2, step_count=1, seed=1)
    while not generate(stub, request)[0].levers.compiled:
        if time.monotonic() - began > _FUSED_WITHIN_S:
            sys.exit("the server runs no fused blocks; its log is above")
        time.sleep(1)
    return time.monotonic() - began


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Renders the clip twice, and gathers the figures."""
    on_gpu = arguments.device != "cpu"
    watch = DeviceWatch(arguments.nvml_index) if on_gpu else None
    if watch is not None:
        watch.start()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        server, port = start_server(arguments, Path(temporary))
        try:
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                stub = video_pb2_grpc.VideoServiceStub(channel)
                model = wait_loaded(server, stub)
                loaded_s = time.monotonic() - began
                fused_s = wait_fused(stub) if arguments.fuse_blocks else None
                request = video_pb2.GenerateRequest(
                    prompt="a red circle over a blue sky",
                    width_px=arguments.width_px,
                    height_px=arguments.height_px,
                    frame_count=arguments.frame_count,
                    step_count=arguments.step_count,
                    guidance_scale=3.0,
                    seed=1,
                )
                completed, sha256, steps = generate(stub, request)
                (device,) = stub.MemoryStatus(video_pb2.MemoryStatusRequest()).report.devices
                device_peak_bytes = watch.end() if watch is not None else 0
                again = generate(stub, request)[1]
        finally:
            server.terminate()
            exit_code = server.wait(60)
    return {
        "device": watch.name if watch is not None else "cpu",
        "dtype": model.dtype,
        "parameter_count": model.parameter_count,
        "weight_bytes": model.weight_bytes,
        "loaded_s": round(loaded_s, 2),
        "fused_s": fused_s,
        "fused": completed.levers.compiled,
        "generate_s": completed.generate_duration.ToTimedelta().total_seconds(),
        "step_s": [round(seconds, 4) for seconds in steps],
        "phases": {
            peak.phase: {
                "allocated_bytes": peak.peak.allocated_bytes,
                "reserved_bytes": peak.peak.reserved_bytes,
                "seconds": round(peak.duration.ToTimedelta().total_seconds(), 3),
            }
            for peak in device.phase_peaks
        },
        "peak_allocated_bytes": device.process_peak.allocated_bytes,
        "peak_reserved_bytes": device.process_peak.reserved_bytes,
        "context_bytes": device.context_bytes,
        "device_peak_bytes": device_peak_bytes,
        "frame_count": completed.frame_count,
        "same_bytes_again": again == sha256,
        "exit_code": exit_code,
    }


def main() -> None:
    """Prints one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, help="folder that make_svd_xt.py wrote")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--nvml-index", type=int, default=0)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--width-px", type=int, default=1024)
    parser.add_argument("--height-px", type=int, default=576)
    parser.add_argument("--frame-count", type=int, default=25)
    parser.add_argument("--step-count", type=int, default=5)
    parser.add_argument("--fuse-blocks", action="store_true", help="by the server's own kernels, once they are tried")
    print(json.dumps(measure(parser.parse_args())))


if __name__ == "__main__":
    main()
