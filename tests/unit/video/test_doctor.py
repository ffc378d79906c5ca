"""The doctor says what is there, what is not and why, and its exit code agrees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from halfreel_video import doctor


def examine(capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, dict[str, Any]]:
    code = doctor.main(["--json", *flags])
    return code, json.loads(capsys.readouterr().out)


def test_a_machine_that_can_run_the_models(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model", str(folders[0]), "--keyframe-model", str(folders[1]), "--device", "cpu"]
    code, found = examine(capsys, *flags)
    assert (code, found["ready"], found["service"]) == (0, True, "video")
    assert [check["name"] for check in found["checks"]] == ["device", "model", "keyframe_model", "memory", "encoder"]
    assert all(check["ok"] for check in found["checks"])
    assert (found["device"], found["precision"]) == ("cpu", "float32")
    assert 0 < found["weight_bytes"] < found["free_bytes"]
    assert {"python", "torch", "diffusers"} <= set(found["versions"])
    halved = examine(capsys, *flags, "--precision", "fp16")[1]
    assert halved["weight_bytes"] * 2 == found["weight_bytes"]


def test_weights_are_counted_as_they_will_be_loaded(folders: tuple[Path, Path], model: Any) -> None:
    settings = doctor.VideoSettings(model=str(folders[0]), keyframe_model=str(folders[1]), device="cpu")
    assert doctor.diagnose(settings).weight_bytes == model.weights.weight_bytes


def test_a_missing_model_is_told_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = examine(capsys, "--model", "owner/never-pulled", "--keyframe-model", "/nowhere")
    assert (code, found["ready"]) == (1, False)
    details = {check["name"]: check["detail"] for check in found["checks"] if not check["ok"]}
    assert "halfreel pull owner/never-pulled" in details["model"]
    assert set(details) == {"model", "keyframe_model"}


def test_lines_for_people(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--model", str(folders[0]), "--keyframe-model", "/nowhere"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line[:2] for line in lines] == ["ok", "ok", "NO", "ok", "ok"]
