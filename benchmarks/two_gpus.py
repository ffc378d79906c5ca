"""The language model on one GPU, the video model on another: a film of two scenes, and what each GPU held and did.

    python benchmarks/two_gpus.py [--write]

Real sizes with random weights. Memory is what MemoryStatus of the gateway and /metrics of each server told by gpu_uuid,
utilisation what /metrics told; both are asked several times a second while the film is made, and drawn over its time.
--tiny --llm-device cpu --video-device cpu tries the script without a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
from film_servers import ROOT, Server, make_models, serving
from PIL import Image, ImageDraw
from prometheus_client.parser import text_string_to_metric_families

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel.gateway.v1 import gateway_pb2_grpc

SAMPLE_S = 0.2
GIB = 2**30
KINDS = {pb.SERVER_KIND_LLM: "llm", pb.SERVER_KIND_VIDEO: "video"}
SCRAPED = {
    "halfreel_torch_memory_reserved_bytes": "scraped_reserved_bytes",
    "halfreel_gpu_memory_used_bytes": "scraped_used_bytes",
    "halfreel_gpu_utilization_ratio": "utilization_ratio",
}


@dataclass
class Samples:
    """What was told over the film's time, and what the film was at."""

    began: float = field(default_factory=time.monotonic)
    taken: list[dict[str, Any]] = field(default_factory=list)
    marks: list[tuple[float, str]] = field(default_factory=list)

    def now_s(self) -> float:
        """Seconds since the samples began."""
        return round(time.monotonic() - self.began, 3)


def scrape(server: Server) -> dict[str, dict[str, float]]:
    """The figures of /metrics by gpu_uuid."""
    address = f"http://127.0.0.1:{server.ports()['metrics_port']}/metrics"
    with urllib.request.urlopen(address, timeout=5) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        found: dict[str, dict[str, float]] = {}
        for family in families:
            for sample in family.samples:
                if sample.name in SCRAPED:
                    found.setdefault(sample.labels["gpu_uuid"], {})[SCRAPED[sample.name]] = sample.value
    return found


def sample(stub: Any, servers: dict[str, Server], samples: Samples) -> None:
    """Asks once, and keeps a row for each device of each model server."""
    at_s = samples.now_s()
    told = stub.MemoryStatus(pb.MemoryStatusRequest(), timeout=10)
    scraped = {name: scrape(servers[name]) for name in ("llm", "video")}
    for server in told.servers:
        name = KINDS[server.kind]
        for device in server.report.devices:
            row = {
                "at_s": at_s,
                "server": name,
                "gpu_uuid": device.gpu_uuid,
                "device_name": device.device_name,
                "used_bytes": device.device_used_bytes,
                "reserved_bytes": device.reserved_bytes,
                "phase": device.current_phase,
            }
            samples.taken.append(row | scraped[name].get(device.gpu_uuid, {}))


def make_film(arguments: argparse.Namespace, servers: dict[str, Server]) -> tuple[pb.Film, Samples]:
    """Has a film made, sampling all the while."""
    with grpc.insecure_channel(f"127.0.0.1:{servers['gateway'].ports()['port']}") as channel:
        stub = gateway_pb2_grpc.GatewayServiceStub(channel)
        settings = pb.FilmSettings(scene_count=2, seed=1)
        if arguments.tiny:
            settings.MergeFrom(pb.FilmSettings(scene_seconds=1, step_count=2, width_px=128, height_px=64))
        samples, ended = Samples(), threading.Event()

        def sample_on() -> None:
            while not ended.is_set():
                with contextlib.suppress(grpc.RpcError, OSError):  # a server that is loading, or busy, is asked again
                    sample(stub, servers, samples)
                ended.wait(SAMPLE_S)

        sampler = threading.Thread(target=sample_on)
        sampler.start()
        request = pb.CreateFilmRequest(request_id="two-gpus", idea="a red circle over a blue sky", settings=settings)
        try:
            film_id = stub.CreateFilm(request, timeout=60).film.film_id
            for event in stub.WatchFilm(pb.WatchFilmRequest(film_id=film_id), timeout=arguments.film_within_s):
                if event.HasField("state_changed"):
                    state = pb.Film.State.Name(event.state_changed.state).removeprefix("STATE_").lower()
                    samples.marks.append((samples.now_s(), state))
            film = stub.GetFilm(pb.GetFilmRequest(film_id=film_id), timeout=60).film
        finally:
            ended.set()
            sampler.join()
    return film, samples


def figures(film: pb.Film, samples: Samples, loaded_s: float) -> dict[str, Any]:
    """What the film cost on each GPU."""
    gpus = {}
    for name in KINDS.values():
        rows = [row for row in samples.taken if row["server"] == name]
        uuids = {row["gpu_uuid"] for row in rows}
        assert len(uuids) == 1, f"{name} told of {uuids}"
        ratios = [row["utilization_ratio"] for row in rows if "utilization_ratio" in row]
        gpus[name] = {
            "gpu_uuid": uuids.pop(),
            "device_name": rows[0]["device_name"],
            "peak_used_gib": round(max(row["used_bytes"] for row in rows) / GIB, 3),
            "peak_reserved_gib": round(max(row["reserved_bytes"] for row in rows) / GIB, 3),
            "scrapes_agree": all(row.get("scraped_reserved_bytes", 0) > 0 for row in rows),
            "mean_utilization_ratio": round(sum(ratios) / len(ratios), 3) if ratios else None,
            "max_utilization_ratio": max(ratios, default=None),
            "samples": len(rows),
        }
    return {
        "film_state": pb.Film.State.Name(film.state),
        "film_s": round((film.end_time.ToMicroseconds() - film.create_time.ToMicroseconds()) / 1e6, 2),
        "scenes": len(film.scenes),
        "video_bytes": film.video.size_bytes,
        "loaded_s": round(loaded_s, 1),
        "separate": gpus["llm"]["gpu_uuid"] != gpus["video"]["gpu_uuid"],
        "llm": gpus["llm"],
        "video": gpus["video"],
        "marks": samples.marks,
    }


def draw(samples: Samples, path: Path) -> None:
    """Memory and utilisation of both over the film's time, one above the other."""
    width, height, left, top = 1200, 300, 90, 40
    picture = Image.new("RGB", (width + left + 40, 2 * (height + 2 * top)), "white")
    pen = ImageDraw.Draw(picture)
    end_s = max([row["at_s"] for row in samples.taken] + [at_s for at_s, _ in samples.marks] + [0.001])
    colours = {"llm": "#d04000", "video": "#0050c0"}
    panels = [
        ("bytes reserved by each server's allocator, GiB", "reserved_bytes", GIB),
        ("part of the time in which a kernel ran", "utilization_ratio", 1.0),
    ]
    for number, (title, key, unit) in enumerate(panels):
        base = top + number * (height + 2 * top)
        values = [row[key] / unit for row in samples.taken if key in row]
        most = max([*values, 1e-9])
        pen.text((left, base - 28), title, fill="black", font_size=16)
        pen.rectangle((left, base, left + width, base + height), outline="#888888")
        for part in (0.0, 0.5, 1.0):
            y = base + height * (1 - part)
            pen.text((8, y - 8), f"{most * part:8.2f}", fill="black", font_size=14)
        for place, (at_s, state) in enumerate(samples.marks):  # their words one below the other: some come at once
            x = left + width * at_s / end_s
            pen.line((x, base, x, base + height), fill="#bbbbbb")
            anchor = "ra" if at_s > 0.9 * end_s else "la"
            pen.text(
                (x + (-3 if anchor == "ra" else 3), base + 3 + 14 * place), state, "#666666", None, anchor, font_size=12
            )
        for place, (name, colour) in enumerate(colours.items()):
            rows = [row for row in samples.taken if row["server"] == name and key in row]
            points = [
                (left + width * row["at_s"] / end_s, base + height * (1 - row[key] / unit / most)) for row in rows
            ]
            if len(points) > 1:
                pen.line(points, fill=colour, width=2)
            label = f"{name}: {rows[0]['gpu_uuid'] if rows else 'not told'}"
            pen.text((left + 420 * place, base + height + 6), label, fill=colour, font_size=14)
        pen.text((left + width - 60, base + height + 6), f"{end_s:.1f} s", fill="black", font_size=14)
    picture.save(path)


def main() -> None:
    """Runs it, and prints one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llm-device", default="cuda:0")
    parser.add_argument("--video-device", default="cuda:1")
    parser.add_argument("--tiny", action="store_true", help="the same shape of models at a fraction of the size")
    parser.add_argument("--models", type=Path, help="folder of the models, made there if missing; else a temporary one")
    parser.add_argument("--film-within-s", type=float, default=900.0)
    parser.add_argument("--plot", type=Path, help="where the plot is written as PNG")
    parser.add_argument("--write", action="store_true", help="write result and plot into benchmarks/results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        models = arguments.models or folder / "models"
        models.mkdir(parents=True, exist_ok=True)
        devices = {"llm": arguments.llm_device, "video": arguments.video_device}
        make_models(models, tiny=arguments.tiny, llm_device=devices["llm"], video_device=devices["video"])
        began = time.monotonic()
        settings = {"llm": {"device": devices["llm"]}, "video": {"device": devices["video"], "stall_s": 600}}
        with serving(models, folder, settings) as servers:
            loaded_s = time.monotonic() - began
            film, samples = make_film(arguments, servers)
    found = figures(film, samples, loaded_s)
    card = card_of(found["llm"]["device_name"], separate=found["separate"])
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    result = {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "card": card,
        "commit": commit.strip() or "unknown",
        "versions": {"python": platform.python_version()} | {name: version(name) for name in ("torch", "diffusers")},
        "figures": found,
    }
    results = ROOT / "benchmarks" / "results"
    if arguments.write:
        results.mkdir(exist_ok=True)
        (results / f"two_gpus-{card}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        lines = "".join(json.dumps(row) + "\n" for row in samples.taken)
        (results / f"two_gpus-{card}.log").write_text(lines, encoding="utf-8")
    plot = arguments.plot or (results / f"two_gpus-{card}.png" if arguments.write else None)
    if plot is not None:
        draw(samples, plot)
    print(json.dumps(result))


def card_of(device_name: str, *, separate: bool) -> str:
    """How result files name the machine, such as h200x2."""
    model = re.search(r"\b[A-Z]+\d+\w*\b", device_name) if "NVIDIA" in device_name else None
    return "cpu" if model is None else model[0].lower() + ("x2" if separate else "")


if __name__ == "__main__":
    main()
