"""The video model's half of `halfreel bench precision`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from halfreel_video import bench
from halfreel_video.levers import Levers
from halfreel_video.settings import VideoSettings


def test_each_set_of_levers_is_measured_and_held_against_fp32(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "PRECISIONS", ("fp32",))  # the others take a CPU minutes
    levers = {"balanced": Levers(), "offload": Levers(offload_idle_parts=True), "decode chunk 1": Levers(1)}
    monkeypatch.setattr(bench, "LEVERS", levers)
    settings = VideoSettings(model=str(folders[0]), keyframe_model=str(folders[1]), device="cpu")
    rows = list(bench.bench(settings, 3, 1))
    assert [(row["precision"], row["levers"]) for row in rows] == [("fp32", name) for name in levers]
    for row in rows:
        assert (row["part"], row["frame_count"], row["step_count"], row["nan_count"]) == ("video", 3, 1, 0)
        assert set(row["peak_reserved_bytes"]) == {"keyframe", "encode", "denoise", "decode"}
        assert row["seconds"] > 0 < row["load_s"]
    full, moved, cut = rows
    assert (full["psnr_db"], full["ssim"]) == (moved["psnr_db"], moved["ssim"]) == (None, 1.0)
    assert 20 < cut["psnr_db"] < 80  # the decoder looks at neighbours
    assert 0.3 < cut["ssim"] < 0.99


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--frames", "1"], "frames is 1; it must be between 2 and 5, the model's own\n"),
        (["--frames", "6"], "frames is 6; it must be between 2 and 5, the model's own\n"),
        (["--steps", "0"], "steps is 0; it must be between 1 and 100\n"),
    ],
)
def test_flags_out_of_range_end_with_one_line(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    where = ["--model", str(folders[0]), "--keyframe-model", str(folders[1]), "--device", "cpu"]
    assert bench.main([*flags, *where]) == 2
    told: Any = capsys.readouterr()
    assert (told.out, told.err.splitlines()[-1] + "\n") == ("", said)
