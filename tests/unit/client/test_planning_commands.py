"""`halfreel plan`, `calibrate` and `bench`: what they print, and how they end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from halfreel_client.command import bench, service_module
from halfreel_client.command.app import app


@pytest.fixture
def run() -> Any:
    runner = CliRunner()
    return lambda *flags: runner.invoke(app, list(flags))


def test_a_plan_for_an_imagined_card(run: Any) -> None:
    done = run("plan", "--gpu", "12GiB")
    assert done.exit_code == 0
    for words in ("1024x576 px, 25 frames, float16 on a card of 12GiB: fits", "denoise", "stream_weights true", "GiB"):
        assert words in done.output


def test_a_plan_as_json(run: Any) -> None:
    done = run("plan", "--gpu", "8GiB", "--profile", "balanced", "--json")
    found = json.loads(done.output)
    assert done.exit_code == 0
    assert found["plan"]["verdict"] == "PLAN_VERDICT_CHEAPER_FITS"
    assert found["variants"][0]["levers"]["offload_idle_parts"]


def test_what_fits_nowhere_ends_with_its_own_code(run: Any) -> None:
    assert run("plan", "--gpu", "1GiB").exit_code == 5


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--gpu", "12GiB", "--width", "100"), "width is 100; it must be a multiple of 8"),
        (("--gpu", "lots"), "'lots' is no amount of memory"),
        (("--gpu", "12GiB", "--budget", "13GiB"), "the device has 12884901888"),
    ],
)
def test_a_bad_flag_is_told_in_one_line(run: Any, flags: tuple[str, ...], text: str) -> None:
    done = run("plan", *flags)
    assert done.exit_code == 2
    assert text in done.output
    assert "Traceback" not in done.output


def test_a_service_that_is_not_installed_is_named(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module.importlib.util, "find_spec", lambda _name: None)
    done = run("plan", "--gpu", "12GiB")
    assert done.exit_code == 2
    assert "halfreel_video is not installed here" in done.output


def test_a_module_that_says_much_is_heard_to_its_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "chatty.py").write_text(
        "import sys\nfor number in range(3):\n"
        "    sys.stderr.write('advice\\n' * 20_000)\n    print('{\"number\": %d}' % number, flush=True)\n"
        "sys.exit('it went wrong')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = service_module.run_module("chatty", [])
    assert [row["number"] for row in found] == [0, 1, 2]
    (tmp_path / "chatty.py").write_text("import sys\nsys.stderr.write('advice\\nit went wrong\\n')\nsys.exit(2)\n")
    with pytest.raises(service_module.CommandError, match=r"^it went wrong$"):
        list(service_module.run_module("chatty", []))


ROWS = {
    "halfreel_llm.bench": [
        {
            "part": "text",
            "precision": "int8",
            "levers": "",
            "load_s": 0.25,
            "nan_count": 0,
            "seconds": 2.0,
            "weight_bytes": 2**20,
            "peak_reserved_bytes": {"load": 2**22},
            "token_agreement": 0.984375,
            "kl_nats": 0.00012,
        }
    ],
    "halfreel_video.bench": [
        {
            "part": "video",
            "precision": "fp32",
            "levers": "balanced",
            "load_s": 1.0,
            "nan_count": 0,
            "seconds": 4.0,
            "peak_reserved_bytes": {"denoise": 2**31, "decode": 2**30},
            "weight_bytes": 2**29,
            "psnr_db": None,
            "ssim": 1.0,
        },
        {
            "part": "video",
            "precision": "fp16",
            "levers": "saver",
            "load_s": 0.5,
            "nan_count": 1,
            "weight_bytes": 2**28,
            "failed": "no numbers",
        },
    ],
}


def test_a_benchmark_is_a_table_a_page_and_a_picture(run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from PIL import Image

    asked: list[tuple[str, list[str]]] = []

    def measured(module: str, flags: list[str], **_: object) -> Any:
        asked.append((module, flags))
        return iter(ROWS[module])

    monkeypatch.setattr(bench, "run_module", measured)
    page, picture = tmp_path / "bench.md", tmp_path / "bench.png"
    done = run("bench", "precision", "--markdown", str(page), "--plot", str(picture), "--frames", "4", "--tokens", "9")
    assert done.exit_code == 0
    assert asked == [("halfreel_llm.bench", ["--tokens", "9"]), ("halfreel_video.bench", ["--frames", "4"])]
    assert "2.0 GiB" in done.output
    assert "same" in done.output
    lines = page.read_text().splitlines()
    assert lines[2:] == [
        "| text | int8 | - | 0.2 s | 4.0 MiB | 2.0 s | 98.4% of tokens | 1.2e-04 nats | 0 |",
        "| video | fp32 | balanced | 1.0 s | 2.0 GiB | 4.0 s | SSIM 1.0000 | same | 0 |",
        "| video | fp16 | saver | 0.5 s | - | - | - | - | 1 |",
    ]
    with Image.open(picture) as drawn:
        assert drawn.format == "PNG"
        assert drawn.height > 60
    rows = [json.loads(line) for line in run("bench", "precision", "--json").output.splitlines()]
    assert rows == [row for part in ROWS.values() for row in part]
