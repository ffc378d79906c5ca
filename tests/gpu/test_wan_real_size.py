"""Wan 2.1 of 1.3 billion parameters with UMT5-XXL, random weights, through the whole server on a GPU."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
MIB, GIB = 2**20, 2**30

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]


def run(script: str, *arguments: str, within_s: float) -> Any:
    """Runs a script in a process of its own, whose GPU memory goes when it ends; returns its last line's JSON."""
    command = [sys.executable, str(HERE / script), *arguments]
    output = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, timeout=within_s).stdout
    print(output)
    return json.loads(output.splitlines()[-1])


@pytest.fixture(scope="module")
def models() -> Iterator[Path]:
    """The model, 15 GB of files: in memory where there is a file system of that kind."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 24 * GIB
    with tempfile.TemporaryDirectory(dir=memory if roomy else None) as folder:
        counts = run("make_wan.py", folder, within_s=180)["parameter_counts"]
        assert round(counts["transformer"] / 1e6, 1) == 1419.0
        assert round(counts["text_encoder"] / 1e6, 1) == 5680.9
        assert round(counts["vae"] / 1e6, 1) == 126.9
        yield Path(folder)


def test_a_clip_of_words_is_computed_in_bf16_and_takes_the_memory_that_the_server_says(models: Path) -> None:
    figures = run("measure_wan.py", str(models), within_s=180)
    assert figures["dtype"] == "bfloat16"
    assert figures["clip"] == [832, 480, 33, 6]
    assert {"load", "encode", "denoise", "decode", "mux"} <= set(figures["phases"])
    said = figures["peak_reserved_bytes"] + figures["context_bytes"]
    assert abs(said - figures["device_peak_bytes"]) <= 64 * MIB, figures
    assert figures["weight_bytes"] < figures["peak_allocated_bytes"] <= figures["peak_reserved_bytes"]
    assert figures["same_bytes_again"]
    assert figures["nan_retry_count"] == 0
    assert figures["exit_code"] == 0
