"""Promises of the package as a whole: no torch, a true `__all__`, sizes of files, names of settings."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import grpc
import pytest

import halfreel_client
from halfreel.gateway.v1 import gateway_pb2
from halfreel.llm.v1 import llm_pb2
from halfreel.video.v1 import video_pb2
from halfreel_client import clip, film, gpus, levers, memory, text
from halfreel_client.gpus import Gpu
from halfreel_client.supervisor import running, stack

ROOT = Path(halfreel_client.__file__).parent


def test_nothing_of_it_imports_torch_or_opentelemetry() -> None:
    script = """
        import importlib, pkgutil, sys
        import halfreel_client
        for module in pkgutil.walk_packages(halfreel_client.__path__, "halfreel_client."):
            if not module.name.endswith(".tether"):  # a program: it becomes another
                importlib.import_module(module.name)
        heavy = {"torch", "transformers", "diffusers", "numpy", "halfreel_llm", "halfreel_video", "halfreel_runtime"}
        with halfreel_client.Client("127.0.0.1:1") as client:
            client.wait_reachable(0)
        print(sorted((heavy | {"opentelemetry"}) & set(sys.modules)))
    """
    import textwrap

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60, check=True
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_all_is_true() -> None:
    assert halfreel_client.__all__ == sorted(set(halfreel_client.__all__))
    for name in halfreel_client.__all__:
        assert getattr(halfreel_client, name) is not None
    with pytest.raises(AttributeError):
        _ = halfreel_client.Torch


@pytest.mark.parametrize(
    ("ours", "message", "renamed"),
    [
        (film.FilmSettings, gateway_pb2.FilmSettings, {}),
        (film.Film, gateway_pb2.Film, {}),
        (film.Scene, gateway_pb2.Scene, {}),
        (film.Artifact, gateway_pb2.Artifact, {}),
        (film.FilmError, gateway_pb2.FilmError, {}),
        (memory.DeviceMemory, memory.gpu_pb2.DeviceMemory, {}),
        (memory.HostMemory, memory.gpu_pb2.HostMemory, {}),
        (memory.MemoryReport, memory.gpu_pb2.MemoryReport, {}),
        (memory.ServerMemory, gateway_pb2.ServerMemory, {}),
        (text.TextRequest, llm_pb2.GenerateRequest, {}),
        (text.TextCompleted, llm_pb2.GenerateResponse.Completed, {}),
        (text.LlmModel, llm_pb2.GetModelResponse, {}),
        (clip.ClipRequest, video_pb2.GenerateRequest, {}),
        (clip.ClipCompleted, video_pb2.GenerateResponse.Completed, {}),
        (clip.VideoModel, video_pb2.GetModelResponse, {}),
        (levers.Levers, video_pb2.GenerateResponse.Levers, {}),
        (memory.PhasePeak, memory.gpu_pb2.PhasePeak, {}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_values_have_every_field_of_the_contract(ours: type, message: type, renamed: dict[str, str]) -> None:
    have = {field.name.removesuffix("_s") for field in fields(ours)}
    for name in message.DESCRIPTOR.fields_by_name:
        assert renamed.get(name, name) in have, f"{ours.__name__} lacks {name}"


def test_no_file_is_long() -> None:
    for path in ROOT.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 300, path


def gpu(uuid: str) -> Gpu:
    return Gpu(uuid, "H200", 1, 1, "1")


@pytest.mark.parametrize(
    ("choice", "names"),
    [(None, "ab"), ("", ""), ("-1", ""), ("1", "b"), ("1,0", "ba"), ("0,7,1", "a"), ("GPU-b", "b"), ("GPU-x,0", "")],
)
def test_visible_gpus(choice: str | None, names: str) -> None:
    assert "".join(found.uuid[-1] for found in gpus.visible([gpu("GPU-a"), gpu("GPU-b")], choice)) == names


def arguments(specs: list[stack.ServerSpec]) -> dict[str, list[str]]:
    return {spec.name: spec.arguments({"llm": "127.0.0.1:1", "video": "127.0.0.1:2"}) for spec in specs}


def test_two_gpus_are_shared_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = [gpu("GPU-a"), gpu("GPU-b")]
    monkeypatch.setattr(stack, "torch_version", lambda: "2.13.0+cpu")
    told = arguments(stack.specs(stack.Ports(), tmp_path, two, {}))
    assert (told["llm"], told["video"]) == ([], [])
    monkeypatch.setattr(stack, "torch_version", lambda: "2.13.0")
    told = arguments(stack.specs(stack.Ports(), tmp_path, two, {}))
    assert (told["llm"], told["video"]) == (["--device", "cuda:0"], ["--device", "cuda:1"])
    for found in ([], two[:1]):
        told = arguments(stack.specs(stack.Ports(), tmp_path, found, {}))
        assert (told["llm"], told["video"]) == ([], [])
    told = arguments(stack.specs(stack.Ports(), tmp_path, two, {"HALFREEL_LLM_DEVICE": "cpu"}))
    assert (told["llm"], told["video"]) == ([], ["--device", "cuda:1"])


def test_ports(tmp_path: Path) -> None:
    specs = stack.specs(stack.Ports(7600, 0, 7602), tmp_path, [], {"HALFREEL_VIDEO_METRICS_PORT": "9"})
    assert {spec.name: (spec.port, spec.metrics_port) for spec in specs} == {
        "gateway": (7600, 7700), "llm": (0, 0), "video": (7602, None),
    }  # fmt: skip


def test_taken_ports_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GATEWAY", "LLM", "VIDEO"):
        monkeypatch.setenv(f"HALFREEL_{name}_METRICS_PORT", "0")
    server = grpc.server(__import__("concurrent.futures").futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    assert stack.taken_ports(stack.Ports(0, port, 0)) == [f"llm: 127.0.0.1:{port}"]
    server.stop(0).wait()
    assert stack.taken_ports(stack.Ports(0, port, 0)) == []


def test_what_runs_is_known_only_while_it_runs(tmp_path: Path) -> None:
    now = running.Running(1, {"gateway": "127.0.0.1:5"}, {"gateway": 2})
    assert running.Running.read(tmp_path) is None
    with running.held(tmp_path):
        now.write(tmp_path)
        assert running.Running.read(tmp_path) == now
        with pytest.raises(running.AlreadyUpError), running.held(tmp_path):
            pass
    assert running.Running.read(tmp_path) is None
    now.write(tmp_path)  # as left by a process that was killed
    assert running.Running.read(tmp_path) is None
