"""Renders one clip of words alone with a video server of its own process, and holds its memory against NVML.

Ends with one JSON line: the arithmetic that the server chose, seconds of a step and of decoding, peak bytes of every
phase, and the device's peak as the driver saw it. Without a GPU (`--device cpu`, small `--width-px` and so on) the
driver's figures are absent.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc
from measure_video import DeviceWatch

from halfreel.video.v1 import video_pb2, video_pb2_grpc

_LOADED_WITHIN_S = 60.0
_CLIP_WITHIN_S = 40.0
_ENDED_WITHIN_S = 20.0


def start_server(arguments: argparse.Namespace, port_file: Path) -> subprocess.Popen[bytes]:
    """Starts the server, which chooses its arithmetic by itself."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HALFREEL_")}
    flags = {"--model": arguments.models / "wan", "--device": arguments.device, "--port": 0, "--metrics-port": 0}
    flags |= {"--port-file": port_file, "--turns": "off"}
    command = [sys.executable, "-m", "halfreel_video", *(str(part) for flag in flags.items() for part in flag)]
    return subprocess.Popen(command, env=environment, stdout=sys.stderr)


def wait_loaded(server: subprocess.Popen[bytes], port_file: Path) -> tuple[Any, Any]:
    """Returns a stub, and what the server says of its model, once it is loaded."""
    deadline, stub = time.monotonic() + _LOADED_WITHIN_S, None
    while server.poll() is None and time.monotonic() < deadline:
        if stub is None and port_file.is_file():
            port = json.loads(port_file.read_text())["port"]
            stub = video_pb2_grpc.VideoServiceStub(grpc.insecure_channel(f"127.0.0.1:{port}"))
        if stub is not None:
            try:
                return stub, stub.GetModel(video_pb2.GetModelRequest(), timeout=5)
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
        time.sleep(0.1)
    sys.exit(f"the model was not loaded within {_LOADED_WITHIN_S:.0f} s; the server's log is above")


def generate(stub: Any, request: Any) -> tuple[Any, list[float]]:
    """Renders a clip; returns its last event and the seconds of its steps."""
    digest, steps = hashlib.sha256(), []
    for event in stub.Generate(request, timeout=_CLIP_WITHIN_S):
        kind = event.WhichOneof("event")
        if kind == "step":
            steps.append(round(event.step.duration.ToTimedelta().total_seconds(), 4))
        elif kind == "video_chunk":
            digest.update(event.video_chunk.data)
    assert event.completed.sha256 == digest.hexdigest()
    return event.completed, steps


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Renders the clip twice, and gathers the figures."""
    watch = DeviceWatch(arguments.nvml_index) if arguments.device != "cpu" else None
    if watch is not None:
        watch.start()
    began_at = time.monotonic()
    request = video_pb2.GenerateRequest(
        prompt="a red circle over a blue sky",
        width_px=arguments.width_px,
        height_px=arguments.height_px,
        frame_count=arguments.frame_count,
        step_count=arguments.step_count,
        guidance_scale=5.0,
        seed=1,
    )
    with tempfile.TemporaryDirectory() as temporary:
        port_file = Path(temporary) / "ports.json"
        server = start_server(arguments, port_file)
        try:
            stub, model = wait_loaded(server, port_file)
            loaded_s = time.monotonic() - began_at
            completed, steps = generate(stub, request)
            (device,) = stub.MemoryStatus(video_pb2.MemoryStatusRequest(), timeout=5).report.devices
            device_peak_bytes = watch.end() if watch is not None else 0
            again, steps_again = generate(stub, request)
        finally:
            server.terminate()
            try:
                exit_code = server.wait(_ENDED_WITHIN_S)
            except subprocess.TimeoutExpired:
                server.kill()
                exit_code = server.wait(_ENDED_WITHIN_S)
    peaks = {peak.phase: peak for peak in device.phase_peaks}
    return {
        "device": watch.name if watch is not None else "cpu",
        "dtype": model.dtype,
        "clip": [completed.width_px, completed.height_px, completed.frame_count, arguments.step_count],
        "parameter_count": model.parameter_count,
        "weight_bytes": model.weight_bytes,
        "loaded_s": round(loaded_s, 2),
        "generate_s": [each.generate_duration.ToTimedelta().total_seconds() for each in (completed, again)],
        "step_s": steps,
        "step_again_s": steps_again,
        "decode_s": round(peaks["decode"].duration.ToTimedelta().total_seconds(), 3),
        "phases": {
            phase: {
                "allocated_bytes": peak.peak.allocated_bytes,
                "reserved_bytes": peak.peak.reserved_bytes,
                "seconds": round(peak.duration.ToTimedelta().total_seconds(), 3),
            }
            for phase, peak in peaks.items()
        },
        "peak_allocated_bytes": device.process_peak.allocated_bytes,
        "peak_reserved_bytes": device.process_peak.reserved_bytes,
        "context_bytes": device.context_bytes,
        "device_peak_bytes": device_peak_bytes,
        "nan_retry_count": completed.nan_retry_count + again.nan_retry_count,
        "same_bytes_again": again.sha256 == completed.sha256,
        "exit_code": exit_code,
    }


def main() -> None:
    """Prints one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, help="folder that make_wan.py wrote")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--nvml-index", type=int, default=0)
    parser.add_argument("--width-px", type=int, default=832)
    parser.add_argument("--height-px", type=int, default=480)
    parser.add_argument("--frame-count", type=int, default=33)
    parser.add_argument("--step-count", type=int, default=6)
    print(json.dumps(measure(parser.parse_args())))


if __name__ == "__main__":
    main()
