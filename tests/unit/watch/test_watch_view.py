"""`halfreel status --watch`: the figures of MemoryStatus and of the films, as an operator reads them."""

from __future__ import annotations

import io

from rich.console import Console

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel.gpu.v1 import gpu_pb2
from halfreel_client.display.watch_view import watch_view
from halfreel_client.film import Film, film_from
from halfreel_client.memory import ServerMemory, server_memory_from

GIB = 2**30
GPU = "GPU-6f1a3c52-2f57-0d2b-7b1e-aa41c0a5b9d0"


def shown(servers: list[ServerMemory], films: list[Film], columns: int = 200) -> str:
    text = io.StringIO()
    Console(file=text, width=columns, highlight=False).print(watch_view(servers, films))
    return text.getvalue()


def server(kind: int, address: str, **device: object) -> ServerMemory:
    report = gpu_pb2.MemoryReport(model_state=gpu_pb2.MODEL_STATE_AWAKE)
    report.devices.add(
        **{
            "gpu_uuid": GPU,
            "device_name": "NVIDIA H100",
            "device_kind": gpu_pb2.DEVICE_KIND_CUDA,
            "device_total_bytes": 80 * GIB,
            "device_used_bytes": 40 * GIB,
            "device_free_bytes": 40 * GIB,
            **device,
        }
    )
    return server_memory_from(pb.ServerMemory(kind=kind, address=address, report=report))


def film(state: int, *scene_states: int, **fields: object) -> Film:
    scenes = [pb.Scene(index=index, state=each) for index, each in enumerate(scene_states)]
    return film_from(pb.Film(film_id="ab" * 16, state=state, scenes=scenes, idea="a red circle", **fields))


def test_two_servers_share_a_gpu_and_each_shows_its_own() -> None:
    phases = [
        gpu_pb2.PhasePeak(phase="denoise", peak=gpu_pb2.MemoryPeak(reserved_bytes=12 * GIB)),
        gpu_pb2.PhasePeak(
            phase="decode", peak=gpu_pb2.MemoryPeak(reserved_bytes=11 * GIB), predicted_reserved_bytes=10 * GIB
        ),
    ]
    video = server(
        pb.SERVER_KIND_VIDEO,
        "video:7602",
        reserved_bytes=9 * GIB,
        budget_bytes=16 * GIB,
        headroom_bytes=7 * GIB,
        current_phase="denoise",
        phase_peaks=phases,
        recent_peak=gpu_pb2.MemoryPeak(reserved_bytes=13 * GIB),
    )
    llm = server(pb.SERVER_KIND_LLM, "llm:7601", reserved_bytes=6 * GIB)
    lines = shown([llm, video], []).splitlines()
    (device,) = [line for line in lines if "NVIDIA H100" in line]  # one line for the GPU, however many servers
    assert "40.0 GiB / 80.0 GiB" in device
    assert "50%" in device
    (row,) = [line for line in lines if "video:7602" in line]
    for figure in ("awake", "denoise", "9.0 GiB", "13.0 GiB", "16.0 GiB", "7.0 GiB", "12.0 GiB", "11.0 GiB (+10%)"):
        assert figure in row, figure
    (row,) = [line for line in lines if "llm:7601" in line]
    assert "6.0 GiB" in row
    assert "none in the making" in lines[-1]


def test_queues_and_films_in_the_making() -> None:
    scene = pb.Scene
    films = [
        film(
            pb.Film.STATE_RENDERING,
            scene.STATE_SUCCEEDED,
            scene.STATE_RENDERING,
            scene.STATE_QUEUED,
            scene.STATE_QUEUED,
            title="A \x1b[31mred circle",
            progress_ratio=0.5,
            waiting_reason="the video server is down",
        ),
        film(pb.Film.STATE_QUEUED),
        film(pb.Film.STATE_SUCCEEDED, scene.STATE_SUCCEEDED, title="an old one"),
    ]
    text = shown([], films)
    assert "1 queued, 1 rendering" in text
    assert "2 waiting, 1 at work, 1 done" in text
    assert "1/4" in text
    assert "the video server is down" in text
    assert "an old one" not in text
    assert "\x1b" not in text  # what a client wrote can't drive the terminal


def test_a_server_that_does_not_answer_and_a_driver_that_cant_be_asked() -> None:
    silent = server_memory_from(
        pb.ServerMemory(kind=pb.SERVER_KIND_LLM, address="llm:7601", problem="is not reachable")
    )
    blind = server(pb.SERVER_KIND_VIDEO, "video:7602", device_used_bytes=0, device_free_bytes=0)
    text = shown([silent, blind], [])
    assert "llm llm:7601: is not reachable" in text
    assert "its driver can't be asked" in text


def test_memory_that_is_short_is_suggested_what_to_do() -> None:
    message = gpu_pb2.MemoryReport()
    message.devices.add(gpu_uuid="cpu", device_kind=gpu_pb2.DEVICE_KIND_CPU)
    message.suggestions.add(code="clear_memory", text="Call ClearMemory: 3.0 GiB are cached and unused.")
    short = server_memory_from(pb.ServerMemory(kind=pb.SERVER_KIND_VIDEO, address="video:7602", report=message))
    assert "video video:7602: Call ClearMemory" in shown([short], [])


def test_a_hundred_films_leave_room_for_the_rest() -> None:
    text = shown([], [film(pb.Film.STATE_QUEUED) for _ in range(100)])
    assert "100 queued" in text
    assert "and 88 more" in text
    assert len(text.splitlines()) < 24
