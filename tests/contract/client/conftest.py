"""A small real gateway on loopback: one film after another, played from memory, that a test can break off at will."""

from __future__ import annotations

import hashlib
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import grpc
import pytest
from grpc_status import rpc_status

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel.gateway.v1 import gateway_pb2_grpc
from halfreel.gpu.v1 import gpu_pb2
from halfreel_runtime import errors

VIDEO = bytes(range(256)) * 4096  # exactly 1 MiB
PIECE_BYTES = 100_000
NARRATIONS = ("A red circle waits over the sea.", "It [bold]rises[/bold].")
SCRIPT = (
    '{"title":"Red over blue","scenes":['
    + ",".join(f'{{"narration":"{text}","picture":"a red circle","seconds":1}}' for text in NARRATIONS)
    + "]}"
)


def artifact(data: bytes, frames: int) -> pb.Artifact:
    message = pb.Artifact(
        size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), width_px=64, height_px=64,
        frame_count=frames, fps=8,
    )  # fmt: skip
    message.duration.FromMilliseconds(frames * 125)
    return message


class Gateway(gateway_pb2_grpc.GatewayServiceServicer):
    """Answers as the contract says. What a test sets:

    pace_s: seconds between two events. fail: the film's end is this error. hold_at: no event after this many stored
    ones until `go_on` is set. break_video_at: the next ReadVideo ends there with UNAVAILABLE. corrupt: wrong bytes.
    unavailable_count: so many CreateFilm are refused as loading, after the film was made. `traces`: what the calls to
    create and to watch said of the trace they are part of.
    """

    def __init__(self) -> None:
        self.port = 0
        self.pace_s = 0.005
        self.fail: pb.FilmError | None = None
        self.hold_at = 0
        self.go_on = threading.Event()
        self.break_video_at = 0
        self.corrupt = False
        self.unavailable_count = 0
        self.creates: list[pb.CreateFilmRequest] = []
        self.watches: list[pb.WatchFilmRequest] = []
        self.reads: list[int] = []
        self.traces: list[str | None] = []
        self.films: dict[str, pb.Film] = {}
        self.logs: dict[str, list[pb.WatchFilmResponse]] = {}
        self.changed = threading.Condition()
        self.server: grpc.Server | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        self.server = grpc.server(ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
        gateway_pb2_grpc.add_GatewayServiceServicer_to_server(self, self.server)
        self.port = self.server.add_insecure_port(f"127.0.0.1:{self.port}")
        self.server.start()

    def stop(self) -> None:
        assert self.server is not None
        self.server.stop(0).wait()

    def CreateFilm(self, request: pb.CreateFilmRequest, context: Any) -> pb.CreateFilmResponse:
        self.creates.append(request)
        self.traces.append(dict(context.invocation_metadata()).get("traceparent"))
        if not request.idea:
            description = "is empty; say what the film is to show in 1 to 2000 characters"
            refuse(context, errors.InvalidArgument(
                f"idea {description}", violations=[errors.Violation("idea", description)],
            ))  # fmt: skip
        if request.idea == "too much":
            refuse(context, errors.QueueFull("64 films are in the making; come back later", retry_after_s=1.5))
        film = next((film for film in self.films.values() if film.request_id == request.request_id), None)
        if film is not None and film.idea != request.idea:
            refuse(context, errors.AlreadyExists("request_id was used for another idea", reason="REQUEST_ID_REUSED"))
        if film is None:
            film = pb.Film(
                film_id=uuid.uuid4().hex, request_id=request.request_id, idea=request.idea,
                settings=request.settings, state=pb.Film.STATE_QUEUED,
            )  # fmt: skip
            if not film.settings.HasField("seed"):
                film.settings.seed = 7
            film.create_time.GetCurrentTime()
            self.films[film.film_id], self.logs[film.film_id] = film, []
            threading.Thread(target=self.play, args=(film,), daemon=True).start()
        if self.unavailable_count:
            self.unavailable_count -= 1
            refuse(context, errors.Draining("the gateway is about to stop"))
        return pb.CreateFilmResponse(film=film)

    def GetFilm(self, request: pb.GetFilmRequest, context: Any) -> pb.GetFilmResponse:
        return pb.GetFilmResponse(film=self.find(request.film_id, context))

    def ListFilms(self, request: pb.ListFilmsRequest, context: Any) -> pb.ListFilmsResponse:
        films, start, size = list(reversed(self.films.values())), int(request.page_token or 0), request.page_size or 2
        token = str(start + size) if start + size < len(films) else ""
        return pb.ListFilmsResponse(films=films[start : start + size], next_page_token=token)

    def WatchFilm(self, request: pb.WatchFilmRequest, context: Any) -> Iterator[pb.WatchFilmResponse]:
        self.watches.append(request)
        self.traces.append(dict(context.invocation_metadata()).get("traceparent"))
        film, log = self.find(request.film_id, context), self.logs[request.film_id]
        with self.changed:
            position = len(log)
            stored = [item for item in log if item.sequence_number]
            snapshot = pb.WatchFilmResponse(sequence_number=len(stored), film=film)
        snapshot.event_time.GetCurrentTime()
        yield snapshot
        if request.HasField("after_sequence_number"):
            yield from (item for item in stored if item.sequence_number > request.after_sequence_number)
        while context.is_active():
            with self.changed:
                if len(log) == position and film.state < pb.Film.STATE_SUCCEEDED:
                    self.changed.wait(0.2)
                new, position = log[position:], len(log)
                ended = film.state >= pb.Film.STATE_SUCCEEDED
            yield from new
            if ended:
                return

    def CancelFilm(self, request: pb.CancelFilmRequest, context: Any) -> pb.CancelFilmResponse:
        film = self.find(request.film_id, context)
        with self.changed:
            if film.state < pb.Film.STATE_SUCCEEDED:
                film.state = pb.Film.STATE_CANCELLED
            self.changed.notify_all()
        return pb.CancelFilmResponse(film=film)

    def DeleteFilm(self, request: pb.DeleteFilmRequest, context: Any) -> pb.DeleteFilmResponse:
        if self.find(request.film_id, context).state < pb.Film.STATE_SUCCEEDED:
            refuse(context, errors.FailedPrecondition("the film has not ended; cancel it", reason="FILM_NOT_ENDED"))
        del self.films[request.film_id]
        return pb.DeleteFilmResponse()

    def ReadVideo(self, request: pb.ReadVideoRequest, context: Any) -> Iterator[pb.ReadVideoResponse]:
        self.find(request.film_id, context)
        self.reads.append(request.offset_bytes)
        data = VIDEO[::-1] if self.corrupt else VIDEO
        for offset in range(request.offset_bytes, len(data), PIECE_BYTES):
            if self.break_video_at and offset >= self.break_video_at:
                self.break_video_at = 0
                refuse(context, errors.Draining("the gateway is about to stop"))
            yield pb.ReadVideoResponse(offset_bytes=offset, data=data[offset : offset + PIECE_BYTES])

    def MemoryStatus(self, request: pb.MemoryStatusRequest, context: Any) -> pb.MemoryStatusResponse:
        device = gpu_pb2.DeviceMemory(
            gpu_uuid="GPU-01234567-89ab", device_name="NVIDIA H200", device_kind=gpu_pb2.DEVICE_KIND_CUDA,
            device_total_bytes=150 << 30, device_used_bytes=20 << 30, allocated_bytes=3 << 30, reserved_bytes=4 << 30,
            process_peak=gpu_pb2.MemoryPeak(allocated_bytes=5 << 30, reserved_bytes=6 << 30),
            phase_peaks=[phase("load", 2)], current_phase="denoise",
        )  # fmt: skip
        report = gpu_pb2.MemoryReport(devices=[device])
        report.read_time.GetCurrentTime()
        return pb.MemoryStatusResponse(
            servers=[
                pb.ServerMemory(kind=pb.SERVER_KIND_VIDEO, address="127.0.0.1:7602", report=report),
                pb.ServerMemory(kind=pb.SERVER_KIND_LLM, address="127.0.0.1:7601", problem="did not answer in 2 s"),
            ]
        )

    def find(self, film_id: str, context: Any) -> pb.Film:
        if film_id not in self.films:
            refuse(context, errors.NotFound(f"there is no film {film_id}", reason="FILM_NOT_FOUND"))
        return self.films[film_id]

    def play(self, film: pb.Film) -> None:
        """The film's life, event by event; ends early when it was cancelled."""
        for event in self.events(film):
            time.sleep(self.pace_s)
            with self.changed:
                log = self.logs[film.film_id]
                stored = sum(1 for item in log if item.sequence_number)
            if self.hold_at and stored >= self.hold_at:
                self.go_on.wait(30)
            with self.changed:
                if film.state >= pb.Film.STATE_SUCCEEDED:
                    return
                if event.WhichOneof("event") in ("state_changed", "scene_changed", "video_ready", "failed"):
                    event.sequence_number = stored + 1
                event.event_time.GetCurrentTime()
                self.apply(film, event)
                log.append(event)
                self.changed.notify_all()

    def events(self, film: pb.Film) -> Iterator[pb.WatchFilmResponse]:
        state, new = pb.WatchFilmResponse.StateChanged, pb.WatchFilmResponse
        yield new(state_changed=state(state=pb.Film.STATE_WRITING_SCRIPT))
        for start in range(0, len(SCRIPT), 20):
            yield new(script_delta=pb.WatchFilmResponse.ScriptDelta(text=SCRIPT[start : start + 20], attempt=1))
        for index, narration in enumerate(NARRATIONS):
            yield new(scene_changed=pb.Scene(index=index, state=pb.Scene.STATE_QUEUED, narration=narration))
        title = "Red over blue"
        yield new(state_changed=state(state=pb.Film.STATE_RENDERING, title=title, progress_ratio=0.2))
        if self.fail is not None:
            yield new(failed=self.fail)
            return
        yield new(waiting=pb.WatchFilmResponse.Waiting(reason="the video server does not answer"))
        yield new(waiting=pb.WatchFilmResponse.Waiting())
        for index, narration in enumerate(NARRATIONS):
            yield new(scene_changed=pb.Scene(index=index, state=pb.Scene.STATE_RENDERING, narration=narration))
            for stage in ("keyframe", "encode", "denoise", "decode", "mux"):
                yield new(scene_stage=pb.WatchFilmResponse.SceneStage(scene_index=index, stage=stage))
                for step in range(4 if stage == "denoise" else 0):
                    event = new(scene_step=pb.WatchFilmResponse.SceneStep(
                        scene_index=index, step_index=step + 1, step_count=4,
                    ))  # fmt: skip
                    event.scene_step.remaining.FromMilliseconds(100 * (3 - step))
                    yield event
            scene = pb.Scene(
                index=index, state=pb.Scene.STATE_SUCCEEDED, narration=narration, clip=artifact(b"clip", 8),
                phase_peaks=[phase("keyframe", index + 1), phase("denoise", 3 - index)],
            )  # fmt: skip
            for stage in ("keyframe", "denoise"):
                scene.stages.add(stage=stage).duration.FromMilliseconds(500)
            yield new(scene_changed=scene)
        yield new(state_changed=state(state=pb.Film.STATE_JOINING, title=title, progress_ratio=0.9))
        yield new(video_ready=artifact(VIDEO, 16))
        yield new(state_changed=state(state=pb.Film.STATE_SUCCEEDED, title=title, progress_ratio=1))

    def apply(self, film: pb.Film, event: pb.WatchFilmResponse) -> None:
        match event.WhichOneof("event"):
            case "state_changed":
                film.state, film.title = event.state_changed.state, event.state_changed.title
                film.progress_ratio = event.state_changed.progress_ratio
                if film.state == pb.Film.STATE_SUCCEEDED:
                    film.end_time.GetCurrentTime()
                    film.script_duration.FromMilliseconds(300)
                    film.join_duration.FromMilliseconds(40)
                    film.script_phase_peaks.append(phase("prefill", 1))
            case "scene_changed":
                kept = [scene for scene in film.scenes if scene.index != event.scene_changed.index]
                scenes = sorted([*kept, event.scene_changed], key=lambda scene: scene.index)
                del film.scenes[:]
                film.scenes.extend(scenes)
            case "video_ready":
                film.video.CopyFrom(event.video_ready)
            case "failed":
                film.error.CopyFrom(event.failed)
                film.state = pb.Film.STATE_FAILED


def phase(name: str, gibibytes: int) -> gpu_pb2.PhasePeak:
    peak = gpu_pb2.MemoryPeak(allocated_bytes=gibibytes << 30, reserved_bytes=(gibibytes + 1) << 30)
    return gpu_pb2.PhasePeak(phase=name, peak=peak)


def refuse(context: Any, error: errors.HalfreelError) -> NoReturn:
    context.abort_with_status(rpc_status.to_status(errors.status_of(error, "test")))
    raise AssertionError("abort_with_status raises")


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    gateway = Gateway()
    gateway.start()
    yield gateway
    gateway.go_on.set()
    gateway.stop()
