"""The README's first command, run as it is: three processes, a film, within a minute."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import av
import pytest
from demo import demo_command, environment

WITHIN_S = 60.0


def demo_s(folder: Path) -> float:
    """Makes the demo's film, checks it, and returns how long that took."""
    folder.mkdir()
    began = time.monotonic()
    done = subprocess.run(
        demo_command(folder), env=environment(), capture_output=True, text=True, timeout=240, cwd=folder
    )
    took_s = time.monotonic() - began
    assert done.returncode == 0, done.stdout + done.stderr
    assert "film.mp4" in done.stdout
    with av.open(str(folder / "film.mp4")) as film:
        assert sum(1 for _ in film.decode(video=0)) > 0
        assert [stream.type for stream in film.streams] == ["video", "subtitle"]
    return took_s


@pytest.mark.timeout(540)
def test_demo_makes_a_film_within_a_minute(tmp_path: Path) -> None:
    took_s = [demo_s(tmp_path / "first")]
    if took_s[0] >= WITHIN_S:  # a busy neighbour is not our slowness, and may have gone
        took_s.append(demo_s(tmp_path / "second"))
    print(json.dumps({"demo_s": [round(each, 1) for each in took_s]}))
    assert min(took_s) < WITHIN_S
