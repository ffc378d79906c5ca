"""A film is one trace through gateway, language model and video model, and nobody outside ever hears of it unasked."""

from __future__ import annotations

import ipaddress
import json
import re
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from trace_collector import Collector, Seen, collecting

from halfreel.gateway.v1 import gateway_pb2 as pb

SERVICES = ("llm", "video", "gateway")
FILM = {"scene_count": 2, "scene_seconds": 1, "width_px": 64, "height_px": 64, "step_count": 3}
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def traced(stack: Any, collector: Collector) -> pb.Film:
    """A film that was made with a trace begun by its client; the stack is started again, to send its spans."""
    stack.stop()
    stack.open()
    for name in SERVICES:
        stack.start(name, trace_endpoint=collector.endpoint)
    stack.wait_serving(*SERVICES)
    request = pb.CreateFilmRequest(
        request_id=uuid.uuid4().hex, idea="a red circle over a blue sky", settings=pb.FilmSettings(**FILM)
    )
    metadata = (("traceparent", f"00-{TRACE}-{PARENT}-01"), ("x-request-id", "order-77"))
    film = stack.gateway.CreateFilm(request, timeout=10, wait_for_ready=True, metadata=metadata).film
    film = stack.wait_ended(film.film_id)
    assert film.state == pb.Film.STATE_SUCCEEDED, film.error
    deadline = time.monotonic() + 30
    while not collector.named("join_clips") and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(4)  # each server sends within a second, and a busy machine takes another two
    return film


def of_film(collector: Collector) -> list[Seen]:
    return [span for span in collector.spans if span.trace_id == TRACE]


@pytest.mark.timeout(300)
def test_a_film_is_one_trace_through_all_three_servers(traced: pb.Film, collector: Collector) -> None:
    spans = of_film(collector)
    by_id = {span.span_id: span for span in spans}
    assert {span.service for span in spans} == {f"halfreel-{name}" for name in SERVICES}

    def above(span: Seen) -> list[str]:
        names = []
        while span.parent_id in by_id:
            span = by_id[span.parent_id]
            names.append(span.name)
        assert span.parent_id == PARENT  # the client's own span
        return names

    def paths(name: str) -> set[tuple[str, ...]]:
        return {tuple(above(span)) for span in spans if span.name == name}

    create = "halfreel.gateway.v1.GatewayService/CreateFilm"
    llm, video = "halfreel.llm.v1.LlmService/Generate", "halfreel.video.v1.VideoService/Generate"
    assert paths(create) == {()}
    assert [span.attributes["halfreel.film_id"] for span in spans if span.name == create] == [traced.film_id]
    for stage in ("queue", "prefill", "decode"):
        assert (llm, "write_script", create) in paths(stage)
    for stage in ("keyframe", "encode", "denoise", "decode", "mux"):
        assert (video, "render_scene", create) in paths(stage)
    assert paths("join_clips") == {(create,)}
    scenes = [span.attributes["halfreel.scene_index"] for span in spans if span.name == "render_scene"]
    assert sorted(scenes) == [0, 1]
    assert {span.attributes["halfreel.film_id"] for span in spans if span.name == "render_scene"} == {traced.film_id}
    assert not [span for span in spans if span.failed]


def test_the_logs_of_all_three_servers_bear_the_trace_and_the_request(stack: Any, traced: pb.Film) -> None:
    for name in SERVICES:
        lines = [json.loads(line) for line in stack.log(name).splitlines() if line.startswith("{")]
        ours = [line for line in lines if line.get("trace_id") == TRACE]
        assert ours, name
        # A scene's own line bears the id by which the gateway asked for it.
        of_scenes = {f"{traced.film_id}-scene-{index}" for index in range(FILM["scene_count"])}
        assert "order-77" in {line["request_id"] for line in ours} <= {"order-77", *of_scenes}, name


def test_a_collector_that_goes_away_holds_no_film_up(stack: Any, traced: pb.Film, collector: Collector) -> None:
    collector.stop()
    film = stack.wait_ended(stack.create("a green square", **{**FILM, "scene_count": 1}).film_id)
    assert film.state == pb.Film.STATE_SUCCEEDED, film.error
    dropped = re.compile(r'^halfreel_trace_spans_total{outcome="dropped",service="\w+"} ([1-9]\S*)', re.MULTILINE)
    for name in SERVICES:
        deadline = time.monotonic() + 30
        while not dropped.search(scraped(stack.metrics_ports[name])):
            assert time.monotonic() < deadline, name
            time.sleep(0.5)
    began = time.monotonic()
    assert set(stack.stop().values()) == {0}
    assert time.monotonic() - began < 20


def scraped(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as page:
        return str(page.read().decode())


def test_by_default_nobody_outside_is_spoken_to(stack: Any, traced: pb.Film) -> None:
    stack.stop()
    stack.open()
    ours = {*stack.ports.values(), *stack.metrics_ports.values()}
    seen: set[tuple[str, int]] = set()
    done = threading.Event()

    def look() -> None:
        """Every 20 ms from the first moment: each connection of each process, open or opening, and each UDP socket."""
        while not done.wait(0.02):
            for process in list(stack.processes.values()):
                try:
                    found = psutil.Process(process.pid).net_connections(kind="inet")
                except psutil.Error:  # not there yet, or no more
                    continue
                seen.update((each.raddr.ip, each.raddr.port) for each in found if each.raddr)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        for name in SERVICES:
            stack.start(name)
        stack.wait_serving(*SERVICES)
        film = stack.wait_ended(stack.create("a red circle", **FILM).film_id)
        assert film.state == pb.Film.STATE_SUCCEEDED, film.error
    finally:
        done.set()
        watcher.join()
    assert seen  # the gateway's calls to the model servers, at least
    assert {port for _, port in seen} & {stack.ports["llm"], stack.ports["video"]}
    clients = {(ip, port) for ip, port in seen if port not in ours}
    assert all(ipaddress.ip_address(ip.removeprefix("::ffff:")).is_loopback for ip, _ in seen), clients
