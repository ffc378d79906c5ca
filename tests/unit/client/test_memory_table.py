"""`halfreel status`: every figure of a report, and what would help."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from halfreel.gateway.v1 import gateway_pb2
from halfreel.gpu.v1 import gpu_pb2
from halfreel_client.display.memory_table import memory_lines, memory_table
from halfreel_client.memory import server_memory_from

GIB = 2**30


def server(**device: Any) -> gateway_pb2.ServerMemory:
    message = gateway_pb2.ServerMemory(kind=gateway_pb2.SERVER_KIND_VIDEO, address="host:7602")
    report = message.report
    report.model_state = gpu_pb2.MODEL_STATE_ASLEEP
    figures = {
        "gpu_uuid": "GPU-12345678-9999",
        "device_name": "NVIDIA H200",
        "device_kind": gpu_pb2.DEVICE_KIND_CUDA,
        "device_total_bytes": 141 * GIB,
        "device_used_bytes": 30 * GIB,
        "device_free_bytes": 111 * GIB,
        "allocated_bytes": 1 * GIB,
        "reserved_bytes": 2 * GIB,
        "context_bytes": 3 * GIB,
        "request_peak": gpu_pb2.MemoryPeak(reserved_bytes=4 * GIB),
        "recent_peak": gpu_pb2.MemoryPeak(reserved_bytes=5 * GIB),
        "process_peak": gpu_pb2.MemoryPeak(reserved_bytes=6 * GIB),
        "budget_bytes": 12 * GIB,
        "other_processes_bytes": 25 * GIB,
        "headroom_bytes": 7 * GIB,
    }
    report.devices.add(**(figures | device))
    return message


def shown(what: Any) -> str:
    console = Console(width=260, file=io.StringIO())
    with console.capture() as capture:
        console.print(what)
    return capture.get()


def test_every_figure_is_there_once() -> None:
    text = shown(memory_table([server_memory_from(server())]))
    head, line = text.splitlines()
    assert head.split()[:3] == ["server", "device", "model"]
    for figure in ("30.0 GiB / 141.0 GiB", "25.0 GiB", "12.0 GiB", *(f"{each}.0 GiB" for each in range(1, 8))):
        assert f" {figure} " in line
    assert "asleep" in line
    assert line.rstrip().endswith("idle")


def test_what_is_not_known_is_no_figure() -> None:
    message = server(
        device_used_bytes=0, device_free_bytes=0, budget_bytes=0, other_processes_bytes=0, headroom_bytes=0
    )
    assert shown(memory_table([server_memory_from(message)])).splitlines()[1].count(" - ") == 3


def test_what_would_help_and_why_a_lever_is_not_as_asked_stand_below() -> None:
    message = server()
    message.report.suggestions.add(code="clear_memory", text="Call ClearMemory.", saved_bytes=GIB)
    message.report.levers.add(lever="attention_backend", value="sdpa", reason="xformers does not load")
    message.report.levers.add(lever="precision", value="fp16")
    text = shown(memory_table([server_memory_from(message)]))
    assert "video host:7602: Call ClearMemory. [clear_memory]" in text
    assert "video host:7602: attention_backend is sdpa: xformers does not load" in text
    assert "precision" not in text


def test_the_short_form_says_that_a_model_sleeps() -> None:
    message = server()
    assert "asleep" in shown(memory_lines([server_memory_from(message)]))
    message.report.model_state = gpu_pb2.MODEL_STATE_AWAKE
    assert "awake" not in shown(memory_lines([server_memory_from(message)]))
