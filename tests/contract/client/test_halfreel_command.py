"""The `halfreel` command as its users run it: a process, its output, its exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from halfreel.gateway.v1 import gateway_pb2 as pb

if TYPE_CHECKING:
    from conftest import Gateway

VIDEO = bytes(range(256)) * 4096


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "halfreel_client", *words]


def environment(folder: Path, **extra: str) -> dict[str, str]:
    own = {key: value for key, value in os.environ.items() if not key.startswith("HALFREEL_")}
    return own | {"HALFREEL_DATA_DIR": str(folder / "data")} | extra


def halfreel(folder: Path, *words: str, **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words), cwd=folder, env=environment(folder, **extra), capture_output=True, text=True, timeout=60
    )


def lines(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def test_make_in_a_pipe_writes_plain_lines(gateway: Gateway, tmp_path: Path) -> None:
    done = halfreel(tmp_path, "make", "a red circle", "-o", "film.mp4", "--address", gateway.address)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "film.mp4").read_bytes() == VIDEO
    told = done.stdout.splitlines()
    assert told[0].endswith("accepted, seed 7")
    for line in (
        "film: writing script",
        "scene 1: “A red circle waits over the sea.”",
        "title: Red over blue",
        "film: rendering",
        "waiting: the video server does not answer",
        "goes on",
        "scene 2: denoise",
        "scene 2: done, 8 frames in 1.0 s",
        "film: succeeded",
        "2 scenes, 16 frames of 64x64, 2.0 s of film at 8 frames/s",
        "script: 0.30 s",
        "keyframe: 1.0 s",
        "join: 0.04 s",
        "peak of llm in prefill: 1.0 GiB allocated, 2.0 GiB reserved",
        "peak of video in load: 2.0 GiB allocated, 3.0 GiB reserved",
        "peak of video in denoise: 3.0 GiB allocated, 4.0 GiB reserved",
        f"film: {tmp_path / 'film.mp4'} (1.0 MiB, seed 7)",
    ):
        assert line in told, f"{line} is not in\n{done.stdout}"
    assert not [line for line in told if '"title"' in line or "\x1b" in line]
    assert len(told) < 60


def test_make_passes_every_setting(gateway: Gateway, tmp_path: Path) -> None:
    done = halfreel(
        tmp_path, "make", "a red circle", "--detach", "--scenes", "3", "--seconds", "2", "--width", "320", "--height",
        "192", "--fps", "12", "--steps", "9", "--motion", "99", "--guidance", "2.5", "--temperature", "0.5", "--seed",
        "11", HALFREEL_ADDRESS=gateway.address,
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stdout.strip() in gateway.films
    assert gateway.creates[0].settings == pb.FilmSettings(
        scene_count=3, scene_seconds=2, width_px=320, height_px=192, fps=12, step_count=9, motion_bucket=99,
        guidance_scale=2.5, temperature=0.5, seed=11,
    )  # fmt: skip


def test_make_json(gateway: Gateway, tmp_path: Path) -> None:
    done = halfreel(tmp_path, "make", "a red circle", "--json", "--address", gateway.address)
    assert done.returncode == 0
    told = lines(done.stdout)
    kinds = [line["event"] for line in told]
    assert [kind for kind in kinds if kind != "memory"][:2] == ["accepted", "snapshot"]
    assert {"script_delta", "scene_step", "scene_changed", "state_changed", "waiting", "memory"} <= set(kinds)
    last = told[-1]
    assert last["event"] == "film"
    assert last["film"]["state"] == "succeeded"
    assert last["path"] == str(tmp_path / "film.mp4")
    assert last["summary"]["frame_count"] == 16
    assert (tmp_path / "film.mp4").read_bytes() == VIDEO


def test_make_a_film_that_fails(gateway: Gateway, tmp_path: Path) -> None:
    gateway.fail = pb.FilmError(code=13, reason="SCRIPT_INVALID", message="the script was no JSON three times")
    done = halfreel(tmp_path, "make", "a red circle", "--address", gateway.address)
    assert done.returncode == 1
    assert done.stderr == "halfreel: the film failed: the script was no JSON three times [SCRIPT_INVALID]\n"
    gateway.fail = pb.FilmError(code=8, reason="OUT_OF_MEMORY", message="needs 12 GiB, 8 GiB are free")
    done = halfreel(tmp_path, "make", "a red circle", "--json", "--address", gateway.address)
    assert done.returncode == 5
    assert [line["event"] for line in lines(done.stdout)[-2:]] == ["film", "error"]
    assert list(tmp_path.glob("*.mp4")) == []


def test_exit_codes(gateway: Gateway, tmp_path: Path) -> None:
    at = ("--address", gateway.address)
    empty = halfreel(tmp_path, "make", "", *at)
    assert (empty.returncode, empty.stderr) == (
        2, "halfreel: idea is empty; say what the film is to show in 1 to 2000 characters [INVALID_FIELD]\n",
    )  # fmt: skip
    full = halfreel(tmp_path, "make", "too much", *at)
    assert full.returncode == 5
    assert "try again in 1.5 s" in full.stderr
    assert halfreel(tmp_path, "watch", "nowhere", *at).returncode == 4
    assert halfreel(tmp_path, "delete", "nowhere", *at).returncode == 4
    assert halfreel(tmp_path, "make", "a", "--width", "wide", *at).returncode == 2
    gone = halfreel(tmp_path, "films", "--address", "127.0.0.1:9")
    assert gone.returncode == 3
    assert "`halfreel up`" in gone.stderr
    for output in ("nowhere/film.mp4", "."):
        refused = halfreel(tmp_path, "make", "a red circle", "-o", output, *at)
        assert refused.returncode == 2
        assert f"--output {output}" in refused.stderr
    assert halfreel(tmp_path, "make", "a", "--local", "--detach").returncode == 2
    for done in (empty, full, gone):
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_cancels_the_film(gateway: Gateway, tmp_path: Path, number: signal.Signals) -> None:
    gateway.hold_at = 5
    process = subprocess.Popen(
        command("make", "a red circle", "--address", gateway.address),
        cwd=tmp_path, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    while "film: rendering" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == "halfreel: cancelled\n"
    assert [film.state for film in gateway.films.values()] == [pb.Film.STATE_CANCELLED]
    assert [entry.name for entry in tmp_path.iterdir()] in ([], ["data"])


def test_a_second_ctrl_c_leaves_at_once(gateway: Gateway, tmp_path: Path) -> None:
    gateway.hold_at = 5
    process = subprocess.Popen(
        command("make", "a red circle", "--address", gateway.address),
        cwd=tmp_path, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    while "film: rendering" not in process.stdout.readline():
        assert process.poll() is None
    gateway.changed.acquire()  # CancelFilm hangs now
    try:
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    finally:
        gateway.changed.release()
        process.communicate()


def test_make_outlives_a_restart_of_the_gateway(gateway: Gateway, tmp_path: Path) -> None:
    gateway.hold_at = 5
    process = subprocess.Popen(
        command("make", "a red circle", "--address", gateway.address),
        cwd=tmp_path, env=environment(tmp_path), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    told = []
    while not told or "film: rendering" not in told[-1]:
        told.append(process.stdout.readline())
        assert process.poll() is None
    gateway.stop()
    gateway.go_on.set()
    time.sleep(0.5)
    gateway.start()
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "joins again" in rest
    assert rest.count("film: rendering") == 0
    assert (tmp_path / "film.mp4").read_bytes() == VIDEO


def test_detach_watch_films_cancel_delete(gateway: Gateway, tmp_path: Path) -> None:
    at = ("--address", gateway.address)
    film_id = halfreel(tmp_path, "make", "a red circle", "--detach", *at).stdout.strip()
    watched = halfreel(tmp_path, "watch", film_id, "-o", "later.mp4", *at)
    assert (watched.returncode, watched.stderr) == (0, "")
    assert (tmp_path / "later.mp4").read_bytes() == VIDEO
    since = halfreel(tmp_path, "watch", film_id, "--after", "3", "--json", *at)
    numbers = [line["sequence_number"] for line in lines(since.stdout) if line.get("sequence_number")]
    assert numbers[1] == 4  # the first is the snapshot's
    listed = halfreel(tmp_path, "films", *at)
    assert film_id in listed.stdout
    assert "succeeded" in listed.stdout
    assert lines(halfreel(tmp_path, "films", "--json", *at).stdout)[0]["film_id"] == film_id
    assert halfreel(tmp_path, "cancel", film_id, *at).stdout == f"film {film_id} is succeeded\n"
    assert halfreel(tmp_path, "delete", film_id, *at).returncode == 0
    assert "no films yet" in halfreel(tmp_path, "films", *at).stdout


def test_status(gateway: Gateway, tmp_path: Path) -> None:
    told = halfreel(tmp_path, "status", "--address", gateway.address)
    assert told.returncode == 0
    assert "NVIDIA H200" in told.stdout
    assert "20.0 GiB / 150.0 GiB" in told.stdout
    assert "did not answer in 2 s" in told.stdout
    (line,) = lines(halfreel(tmp_path, "status", "--once", "--json", "--address", gateway.address).stdout)
    assert line["servers"][0]["report"]["devices"][0]["reserved_bytes"] == 4 << 30


def test_status_watch(gateway: Gateway, tmp_path: Path) -> None:
    at = ("--address", gateway.address)
    told = halfreel(tmp_path, "status", "--watch", *at)
    assert told.returncode == 0
    assert "NVIDIA H200" in told.stdout
    assert "none in the making" in told.stdout
    (line,) = lines(halfreel(tmp_path, "status", "--watch", "--once", "--json", *at).stdout)
    assert (len(line["servers"]), line["films"]) == (2, [])


def test_a_reader_that_leaves(gateway: Gateway, tmp_path: Path) -> None:
    line = f"{sys.executable} -m halfreel_client make 'a red circle' --json --address {gateway.address} | head -1"
    done = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=30
    )
    assert len(done.stdout.splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_nothing_is_down(tmp_path: Path) -> None:
    done = halfreel(tmp_path, "down")
    assert (done.returncode, done.stdout) == (0, "nothing is up\n")


def test_help_names_the_exit_codes(tmp_path: Path) -> None:
    for words in ((), ("make",), ("up",), ("status",)):
        done = halfreel(tmp_path, *words, "--help", COLUMNS="200")
        assert done.returncode == 0
        assert "130 cancelled" in done.stdout
