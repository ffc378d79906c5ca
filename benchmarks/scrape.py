"""What does a scrape take, and what does counting cost? Three real servers with the embedded models, idle and at work.

    python benchmarks/scrape.py [--scrapes 200] [--write]

`idle_ms`, `busy_ms`: of each server, the median and the largest time of a GET of /metrics over a connection of its own,
while nothing is asked for and while a film is made. `body_bytes`, `series`: what it answers. `count_us`, `span_us`: one
denoising step counted with its trace's exemplar, and one span while no collector is set.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
import urllib.request
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
from llm_bench import result_of, write_result
from prometheus_client.parser import text_string_to_metric_families

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel.gateway.v1 import gateway_pb2_grpc
from halfreel_runtime.instruments import Instruments
from halfreel_runtime.tracing import joined, span

SERVING_WITHIN_S = 120
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def start(name: str, folder: Path, **settings: str) -> tuple[subprocess.Popen[bytes], dict[str, int]]:
    """A server on ports of its own, once it listens."""
    ports = folder / f"{name}.json"
    environ = {key: value for key, value in os.environ.items() if not key.startswith("HALFREEL_")}
    wanted = {"port": "0", "metrics_port": "0", "port_file": str(ports), **settings}
    environ |= {f"HALFREEL_{name}_{key}".upper(): value for key, value in wanted.items()}
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", f"halfreel_{name}"], env=environ, stdout=log, stderr=log)
    deadline = time.monotonic() + SERVING_WITHIN_S
    while not ports.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{name} did not start: {(folder / f'{name}.log').read_text()[-2000:]}")
        time.sleep(0.05)
    return process, json.loads(ports.read_text())


def get(port: int, path: str) -> bytes:
    """The body of a page."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as page:
        return bytes(page.read())


def wait_ready(port: int) -> None:
    """Until the server serves."""
    deadline = time.monotonic() + SERVING_WITHIN_S
    while True:
        try:
            get(port, "/readyz")
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return


def scrape_ms(port: int, count: int) -> dict[str, float]:
    """Median and largest."""
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        get(port, "/metrics")
        taken.append(1000 * (time.perf_counter() - began))
        time.sleep(0.01)
    return {"median": round(statistics.median(taken), 2), "largest": round(max(taken), 2)}


def measured(count: int) -> dict[str, Any]:
    """All figures."""
    figures: dict[str, Any] = {"idle_ms": {}, "busy_ms": {}, "body_bytes": {}, "series": {}}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ports = {}
        for name in ("llm", "video", "gateway"):
            known = {f"{each}_addresses": f"127.0.0.1:{ports[each]['port']}" for each in ports}
            extra = known | {"data_dir": str(folder)} if name == "gateway" else {}
            process, ports[name] = start(name, folder, **extra)
            stack.callback(process.wait)
            stack.callback(process.terminate)
        for each in ports.values():
            wait_ready(each["metrics_port"])
        for name, each in ports.items():
            figures["idle_ms"][name] = scrape_ms(each["metrics_port"], count)
        channel = stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{ports['gateway']['port']}"))
        gateway = gateway_pb2_grpc.GatewayServiceStub(channel)
        settings = pb.FilmSettings(scene_count=8, step_count=100)
        request = pb.CreateFilmRequest(
            request_id=uuid.uuid4().hex, idea="a red circle over a blue sky", settings=settings
        )
        film_id = gateway.CreateFilm(request, timeout=10).film.film_id
        while gateway.GetFilm(pb.GetFilmRequest(film_id=film_id), timeout=10).film.state < pb.Film.STATE_RENDERING:
            time.sleep(0.1)
        for name, each in ports.items():
            figures["busy_ms"][name] = scrape_ms(each["metrics_port"], count)
            body = get(each["metrics_port"], "/metrics")
            families = text_string_to_metric_families(body.decode())
            figures["body_bytes"][name], figures["series"][name] = (
                len(body),
                sum(len(each.samples) for each in families),
            )
        state = gateway.GetFilm(pb.GetFilmRequest(film_id=film_id), timeout=10).film.state
        figures["busy_to_the_end"] = state == pb.Film.STATE_RENDERING
        gateway.CancelFilm(pb.CancelFilmRequest(film_id=film_id), timeout=10)
    instruments, rounds = Instruments("video"), 20_000
    with joined(TRACEPARENT):
        figures["count_us"] = round(1e6 * timeit.timeit(lambda: instruments.step(0.1), number=rounds) / rounds, 2)
    figures["span_us"] = round(1e6 * timeit.timeit(one_span, number=rounds) / rounds, 2)
    return figures


def one_span() -> None:
    """A span that nobody sends."""
    with span("step"):
        pass


def main() -> None:
    """Prints one JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scrapes", type=int, default=200, help="of each server, idle and busy (default 200)")
    parser.add_argument("--write", action="store_true", help="keep the result in benchmarks/results")
    flags = parser.parse_args()
    line = result_of(measured(flags.scrapes), where="cpu", libraries=("prometheus_client", "grpcio", "torch"))
    if flags.write:
        write_result(line, "scrape", "cpu")
    print(line)


if __name__ == "__main__":
    main()
