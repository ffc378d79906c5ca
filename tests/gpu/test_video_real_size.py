"""SVD-XT and sd-turbo at their real sizes, random weights, FP16, through the whole server on a GPU."""

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
MIB = 2**20

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]


def run(script: str, *arguments: str) -> Any:
    """Runs a script in a process of its own, whose GPU memory goes when it ends; returns its last line's JSON."""
    command = [sys.executable, str(HERE / script), *arguments]
    output = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    print(output)
    return json.loads(output.splitlines()[-1])


@pytest.fixture(scope="module")
def models() -> Iterator[Path]:
    """Both models, 7 GB of files: in memory where there is a file system of that kind."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 12 * 2**30
    with tempfile.TemporaryDirectory(dir=memory if roomy else None) as folder:
        written = run("make_svd_xt.py", folder)
        counts = written["parameter_counts"]
        assert round(counts["svd-xt/unet"] / 1e6, 1) == 1524.6
        assert round(counts["svd-xt/image_encoder"] / 1e6, 1) == 632.1
        assert round(counts["svd-xt/vae"] / 1e6, 1) == 97.7
        yield Path(folder)


def test_a_clip_at_real_size_takes_the_memory_that_the_server_says(models: Path) -> None:
    figures = run("measure_video.py", str(models))
    assert figures["dtype"] == "float16"
    assert figures["frame_count"] == 25
    assert {"load", "keyframe", "encode", "denoise", "decode", "mux"} <= set(figures["phases"])
    said = figures["peak_reserved_bytes"] + figures["context_bytes"]
    assert abs(said - figures["device_peak_bytes"]) <= 64 * MIB, figures
    assert figures["weight_bytes"] < figures["peak_allocated_bytes"] <= figures["peak_reserved_bytes"]
    assert figures["same_bytes_again"]
    assert figures["exit_code"] == 0


def test_a_clip_by_fused_blocks_takes_the_memory_that_the_server_says(models: Path) -> None:
    figures = run("measure_video.py", str(models), "--fuse-blocks")
    assert figures["fused"]
    said = figures["peak_reserved_bytes"] + figures["context_bytes"]
    assert abs(said - figures["device_peak_bytes"]) <= 64 * MIB, figures
    assert figures["same_bytes_again"]
    assert figures["exit_code"] == 0
