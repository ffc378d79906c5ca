"""What the doctor says: the truth about the model and this machine, without loading anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_llm

from halfreel_llm import doctor
from halfreel_llm.generation import TextModel
from halfreel_llm.settings import LlmSettings


def settings(folder: Path, **changes: object) -> LlmSettings:
    return LlmSettings(model=str(folder), device="cpu", **changes)  # type: ignore[arg-type]


def test_a_model_that_fits_is_ready(glm_folder: Path, text_model: TextModel) -> None:
    diagnosis = doctor.diagnose(settings(glm_folder))
    assert diagnosis.ready
    assert [check.name for check in diagnosis.checks] == ["device", "model", "tokenizer", "weights", "memory"]
    assert diagnosis.weight_bytes == text_model.network.weight_bytes
    assert diagnosis.cache_bytes == 2 * 2 * 2 * 16 * 1024 * 4  # key and value, layers, heads, head, tokens, bytes
    assert doctor.diagnose(settings(glm_folder, precision="bf16")).weight_bytes == text_model.network.weight_bytes // 2
    assert doctor.diagnose(settings(glm_folder, context_token_count=512)).cache_bytes == diagnosis.cache_bytes // 2
    assert diagnosis.versions["torch"]


def test_a_model_that_is_not_there_is_told(tmp_path: Path) -> None:
    diagnosis = doctor.diagnose(settings(tmp_path / "nowhere"))
    assert not diagnosis.ready
    assert "there is no such folder" in next(check.detail for check in diagnosis.checks if check.name == "model")


def test_a_model_that_does_not_fit_is_told(glm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_parameter_count", lambda checkpoint: 10**15)
    diagnosis = doctor.diagnose(settings(glm_folder))
    assert not diagnosis.ready
    assert not next(check.ok for check in diagnosis.checks if check.name == "memory")


def test_a_damaged_weight_file_is_told(tmp_path: Path) -> None:
    folder = tiny_llm.save_glm(tmp_path)
    (folder / "model.safetensors").write_bytes(b"cut")
    diagnosis = doctor.diagnose(settings(folder))
    assert not diagnosis.ready
    assert "is damaged" in next(check.detail for check in diagnosis.checks if check.name == "weights")


def test_it_runs_as_a_program(glm_folder: Path) -> None:
    command = [sys.executable, "-m", "halfreel_llm.doctor", "--json", "--device", "cpu", "--model", str(glm_folder)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HALFREEL_")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["ready"] is True
