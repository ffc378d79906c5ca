"""Both model servers take turns on one device: films are made, and one of the servers may die in its turn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel.gpu.v1 import gpu_pb2, gpu_pb2_grpc

IDEA = "a red circle moving over a blue sky, then a green square in the snow"


def state(stack: Any, name: str) -> int:
    with grpc.insecure_channel(f"127.0.0.1:{stack.ports[name]}") as channel:
        watch = gpu_pb2_grpc.MemoryServiceStub(channel).WatchMemory(gpu_pb2.WatchMemoryRequest(), timeout=20)
        return int(next(iter(watch)).report.model_state)


def events(stack: Any, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stack.log(name).splitlines() if line.startswith("{")]


def test_two_films_are_made_in_turns_though_the_one_at_its_turn_is_killed(own_stack: Any, tmp_path: Path) -> None:
    sharing = own_stack
    turns = {"turns": "on", "turns_dir": str(tmp_path / "turns"), "turn_s": "1"}
    for name in ("llm", "video"):
        sharing.start(name, **turns)
    sharing.start("gateway")
    sharing.wait_serving("llm", "video", "gateway")
    settings = {"scene_count": 2, "scene_seconds": 1, "step_count": 2}
    first = sharing.create(IDEA, seed=3, **settings)
    for event in sharing.watch(first.film_id):
        if event.WhichOneof("event") == "scene_step":
            break
    assert state(sharing, "llm") == gpu_pb2.MODEL_STATE_ASLEEP
    second = sharing.create(IDEA, seed=4, **settings)
    sharing.kill("video")  # in its turn, its model on the device
    sharing.start("video", **turns)
    for film in (first, second):
        ended = sharing.wait_ended(film.film_id)
        assert ended.state == pb.Film.STATE_SUCCEEDED, ended.error
    for name in ("llm", "video"):
        happened = [each["event"] for each in events(sharing, name)]
        assert "model_asleep" in happened
        assert not {"wake_failed", "sleep_failed", "gate_failed", "engine_stalled"} & set(happened)
    assert {state(sharing, "llm"), state(sharing, "video")} <= {
        gpu_pb2.MODEL_STATE_AWAKE,
        gpu_pb2.MODEL_STATE_ASLEEP,
    }
