"""The complete system under hard caps: a film of three scenes on one GPU that has no more memory than a small card.

    python benchmarks/memory_system.py [--caps 16,12,8] [--gpu-index 0] [--write]

ChatGLM3-6B, a keyframe model of sd-turbo's shape and SVD-XT at real sizes with random weights, as three servers that
take turns. A process of its own holds the rest of the card, so that what is free is what a card of 16, 12 or 8 GiB has
(15.5, 11.5, 7.6 GiB: driver and desktop take the rest); each server has a `memory_budget` besides. The device peak is
the largest of 10 ms samples of the card's used bytes (NVML) less what they were before the servers started. Clips have
25 frames of 1024x576 and few denoising steps: memory does not depend on their number. --tiny --device cpu tries the
script without a GPU: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
from film_servers import ROOT, Server, make_models, serving
from google.protobuf.json_format import MessageToDict
from held_card import HeldCard, held_card
from plot_system import draw
from system_record import GIB, Record
from two_gpus import card_of

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel.gateway.v1 import gateway_pb2_grpc

SCENE_COUNT = 3
READY_WITHIN_S, FILM_WITHIN_S, MODELS_WITHIN_S = 120.0, 150.0, 180.0
# The models' files take 19 GiB; in memory they are read at once.
_SHM, _SHM_BYTES = Path("/dev/shm"), 30 * GIB
_LAST_LINES = 12  # of a server's log, where something went wrong


@dataclass(frozen=True)
class Cap:
    """A card, and how the servers are set for it.

    Attributes:
        usable_bytes: what driver and desktop leave of it.
        llm: settings of the language model server.
        video: settings of the video server.
    """

    usable_bytes: int
    llm: dict[str, object]
    video: dict[str, object]


# One script is written at a time, and the longest has some 1,200 tokens. A server's budget leaves the other one's CUDA
# context, which a sleeping server keeps, 0.7 GiB on an H200; at 16 GiB both leave as much more as the target asks for.
_SCRIPT = {"slot_count": 1, "context_token_count": 1536}
CAPS = {
    16: Cap(
        int(15.5 * GIB),
        {**_SCRIPT, "precision": "fp16", "memory_budget": "13.2GiB"},
        {"memory_profile": "auto", "memory_budget": "12.6GiB"},
    ),
    12: Cap(
        int(11.5 * GIB),
        {**_SCRIPT, "precision": "int8", "memory_budget": "10.7GiB"},
        {"memory_profile": "auto", "memory_budget": "10.7GiB"},
    ),
    8: Cap(
        int(7.6 * GIB),
        {**_SCRIPT, "context_token_count": 1280, "precision": "int8", "memory_budget": "7.1GiB"},
        {"memory_profile": "saver", "memory_budget": "6.8GiB"},
    ),
}


def film_settings(*, tiny: bool, step_count: int) -> pb.FilmSettings:
    """Three scenes of one clip of 25 frames each, at SVD-XT's own size."""
    settings = pb.FilmSettings(scene_count=SCENE_COUNT, seed=1)
    if tiny:
        settings.MergeFrom(pb.FilmSettings(scene_seconds=1, fps=4, step_count=1, width_px=128, height_px=64))
    else:
        settings.MergeFrom(pb.FilmSettings(scene_seconds=5, fps=5, step_count=step_count, width_px=1024, height_px=576))
    return settings


def make_film(stub: Any, cap: int, settings: pb.FilmSettings, record: Record) -> pb.Film:
    """Has a film made, and notes what it is at; after its time it is cancelled, and told as far as it came."""
    request = pb.CreateFilmRequest(request_id=f"card-{cap}", idea="a red circle over a blue sky", settings=settings)
    film_id = stub.CreateFilm(request, timeout=30).film.film_id
    try:
        for event in stub.WatchFilm(pb.WatchFilmRequest(film_id=film_id), timeout=FILM_WITHIN_S):
            if event.HasField("state_changed"):
                record.mark("film", pb.Film.State.Name(event.state_changed.state).removeprefix("STATE_").lower())
            elif event.HasField("scene_changed"):
                scene = event.scene_changed
                state = pb.Scene.State.Name(scene.state).removeprefix("STATE_").lower()
                record.mark("scene", f"scene {scene.index + 1} {state}")
            elif event.HasField("scene_stage"):
                record.mark("stage", f"scene {event.scene_stage.scene_index + 1} {event.scene_stage.stage}")
            elif event.HasField("waiting") and event.waiting.reason:
                record.mark("waiting", event.waiting.reason)
    except grpc.RpcError as error:
        record.mark("film", f"cut off: {error.code().name}")
        with contextlib.suppress(grpc.RpcError):
            stub.CancelFilm(pb.CancelFilmRequest(film_id=film_id), timeout=10)
    film: pb.Film = stub.GetFilm(pb.GetFilmRequest(film_id=film_id), timeout=30).film
    return film


def film_figures(film: pb.Film) -> dict[str, Any]:
    """What the gateway and, through it, both servers told of the film."""
    scenes = [
        {
            "state": pb.Scene.State.Name(scene.state).removeprefix("STATE_").lower(),
            "attempts": scene.attempt_count,
            "levers": MessageToDict(scene.levers, preserving_proto_field_name=True),
            "rungs": list(scene.rungs),
            "clip": [scene.clip.width_px, scene.clip.height_px, scene.clip.frame_count],
            "phases": [_phase(peak) for peak in scene.phase_peaks],
            "error": _error(scene.error) if scene.HasField("error") else None,
        }
        for scene in film.scenes
    ]
    return {
        "film_state": pb.Film.State.Name(film.state).removeprefix("STATE_").lower(),
        "film_error": _error(film.error) if film.HasField("error") else None,
        "film_s": round((film.end_time.ToMicroseconds() - film.create_time.ToMicroseconds()) / 1e6, 2),
        "script_s": round(film.script_duration.ToMicroseconds() / 1e6, 2),
        "script_phases": [_phase(peak) for peak in film.script_phase_peaks],
        "scenes": scenes,
        "video_bytes": film.video.size_bytes,
    }


def _phase(peak: Any) -> dict[str, Any]:
    return {
        "phase": peak.phase,
        "reserved_gib": round(peak.peak.reserved_bytes / GIB, 3),
        "allocated_gib": round(peak.peak.allocated_bytes / GIB, 3),
        "predicted_gib": round(peak.predicted_reserved_bytes / GIB, 3),
        "seconds": round(peak.duration.ToMicroseconds() / 1e6, 3),
    }


def _error(error: pb.FilmError) -> dict[str, Any]:
    return {"reason": error.reason, "message": error.message, "metadata": dict(error.metadata)}


@dataclass
class Bench:
    """One run: the card, the models and what was asked for."""

    tiny: bool
    step_count: int
    environment: dict[str, str]
    models: Path
    card: HeldCard | None

    def film_under(self, size: int) -> tuple[dict[str, Any], Record]:
        """Starts the servers under a cap and has the film made; what went wrong is told and not raised."""
        cap = CAPS[size]
        on_gpu = self.card is not None
        free_bytes = self.card.leave_free(cap.usable_bytes) if self.card is not None else 0
        record = Record(size, cap.usable_bytes, self.card.gpu_uuid if self.card is not None else "")
        told: dict[str, Any] = {"film_state": "not begun", "scenes": []}
        problem, log_ends = "", {}
        # With torch's own view of the card, which is the large one, servers would think that all of them fit.
        device = {"device": "cuda:0" if on_gpu else "cpu", "turns": "on", "log_level": "info", "grace_s": 5}
        with tempfile.TemporaryDirectory() as scratch, record.sampling():
            folder = Path(scratch)
            shared = {**device, "turns_dir": folder / "turns"}
            settings: dict[str, dict[str, object]] = {
                "llm": {**shared, **cap.llm},
                "video": {**shared, **cap.video, "stall_s": 120},
                "gateway": {"log_level": "info"},
            }
            if self.tiny:
                settings["llm"]["context_token_count"] = 0
            try:
                with serving(
                    self.models, folder, settings, environment=self.environment, keep_logs=True, ended_within_s=15
                ) as servers:
                    told |= self._film(size, servers, record)
            except Exception as error:
                problem = f"{type(error).__name__}: {error}"
                traceback.print_exc()
            record.take_logs(folder)
            done = told["film_state"] == "succeeded" and len(told["scenes"]) == SCENE_COUNT
            if not done:
                log_ends = {path.stem: path.read_text().splitlines()[-_LAST_LINES:] for path in folder.glob("*.log")}
        settings_told = {name: {k: str(v) for k, v in getattr(cap, name).items()} for name in ("llm", "video")}
        figures = {"card_gib": size, "done": done, "problem": problem, "free_at_start_gib": round(free_bytes / GIB, 3)}
        figures |= {"usable_gib": round(cap.usable_bytes / GIB, 3), "settings": settings_told}
        return {**figures, **record.figures(), **told, "log_ends": log_ends}, record

    def _film(self, size: int, servers: dict[str, Server], record: Record) -> dict[str, Any]:
        record.pids = [servers[name].process.pid for name in ("llm", "video")]
        record.mark("film", "servers listen")
        with grpc.insecure_channel(f"127.0.0.1:{servers['gateway'].ports(30)['port']}") as channel:
            stub = gateway_pb2_grpc.GatewayServiceStub(channel)
            with record.asking(stub):
                deadline = time.monotonic() + READY_WITHIN_S
                for name in ("llm", "video"):
                    servers[name].wait_ready(deadline - time.monotonic())
                record.mark("film", "ready")
                settings = film_settings(tiny=self.tiny, step_count=self.step_count)
                return film_figures(make_film(stub, size, settings, record))


@contextlib.contextmanager
def bench(arguments: argparse.Namespace) -> Iterator[Bench]:
    """The models written and the card ready to be held."""
    on_gpu = arguments.device != "cpu"
    environment: dict[str, str] = {}
    if on_gpu:  # all processes see the one card only
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else []
        environment["CUDA_VISIBLE_DEVICES"] = names[arguments.gpu_index] if names else str(arguments.gpu_index)
    roomy = _SHM.is_dir() and shutil.disk_usage(_SHM).free > _SHM_BYTES
    with contextlib.ExitStack() as opened:
        place = opened.enter_context(tempfile.TemporaryDirectory(dir=_SHM if roomy else None))
        models = arguments.models or Path(place)
        models.mkdir(parents=True, exist_ok=True)
        device = "cuda:0" if on_gpu else "cpu"
        began = time.monotonic()
        make_models(
            models,
            tiny=arguments.tiny,
            llm_device=device,
            video_device=device,
            environment=environment,
            within_s=MODELS_WITHIN_S,
        )
        say(part="models", seconds=round(time.monotonic() - began, 1), folder="shm" if roomy else "disk")
        card = opened.enter_context(held_card({**os.environ, **environment})) if on_gpu else None
        yield Bench(arguments.tiny, arguments.step_count, environment, models, card)


def say(**values: Any) -> None:
    """One JSON line, at once."""
    print(json.dumps(values), flush=True)


def result_of(found: dict[int, dict[str, Any]], card: str, step_count: int) -> dict[str, Any]:
    """The result file's content, of the caps that were tried so far."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    peaks = {
        f"device_peak_gib_{size}": told["device_peak_gib"] if told["done"] else None for size, told in found.items()
    }
    return {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "card": card,
        "commit": os.environ.get("HALFREEL_COMMIT") or commit.strip() or "unknown",
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "transformers", "diffusers")},
        "figures": {
            **peaks,
            "films_failed": sum(not told["done"] for told in found.values()),
            "step_count": step_count,
            "caps": [{key: value for key, value in told.items() if key != "log_ends"} for told in found.values()],
        },
    }


def keep(result: dict[str, Any], records: list[Record], folder: Path) -> list[Path]:
    """Writes result, log and plot; returns where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"memory_system-{result['card']}"
    paths = [stem.with_suffix(suffix) for suffix in (".json", ".log", ".png")]
    paths[0].write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    paths[1].write_text("".join(line + "\n" for record in records for line in record.lines()), encoding="utf-8")
    draw(records, paths[2])
    return paths


def main() -> int:
    """Runs it, and prints one JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--caps", default="16,12,8", help="cards to try, in GiB")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--gpu-index", type=int, default=0, help="which of the GPUs that can be seen")
    parser.add_argument("--tiny", action="store_true", help="the same shape of models at a fraction of the size")
    parser.add_argument("--models", type=Path, help="folder of the models, made there if missing; else a temporary one")
    parser.add_argument("--step-count", type=int, default=4, help="denoising steps of a clip")
    parser.add_argument("--within-s", type=float, default=330.0, help="a cap is not begun after so long")
    parser.add_argument("--write", action="store_true", help="write result, log and plot into benchmarks/results")
    arguments = parser.parse_args()
    sizes = [int(size) for size in arguments.caps.split(",")]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no child outlives a run that is cut short
    began = time.monotonic()
    found: dict[int, dict[str, Any]] = {}
    records: list[Record] = []
    folders = [ROOT / "benchmarks" / "results"] if arguments.write else []
    folders += [Path(os.environ["OUT"])] if os.environ.get("OUT") else []
    with bench(arguments) as made:
        card = "cpu" if made.card is None else card_of(made.card.name, separate=False)
        result = result_of(found, card, arguments.step_count)
        for size in sizes:
            if time.monotonic() - began > arguments.within_s:
                say(part=size, problem="not begun: there is no time left")
                found[size] = {"card_gib": size, "done": False, "problem": "not begun: there was no time left"}
                continue
            try:
                found[size], record = made.film_under(size)
                records.append(record)
            except Exception as error:  # the other caps are tried all the same
                traceback.print_exc()
                found[size] = {"card_gib": size, "done": False, "problem": f"{type(error).__name__}: {error}"}
            say(part=size, **found[size])
            result = result_of(found, card, arguments.step_count)
            for folder in folders:  # after each: a run that is cut short leaves what it had
                keep(result, records, folder)
    print(json.dumps(result), flush=True)
    return 1 if result["figures"]["films_failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
