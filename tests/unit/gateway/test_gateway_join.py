"""Joining: real clips, joined without encoding again where they agree, with captions that read as they were given."""

from __future__ import annotations

import hashlib
import itertools
import os
from pathlib import Path
from types import SimpleNamespace

import av
import pytest
from gateway_doubles import make_clip

from halfreel_gateway.artifacts import Artifacts
from halfreel_gateway.clip import DamagedVideoError, read_facts
from halfreel_gateway.failures import FilmFailedError
from halfreel_gateway.folder_lock import is_held, take
from halfreel_gateway.join import DamagedPartError, Part, join

CAPTIONS = ["A {red} circle \\N rises,", '你好, "blue" & <b>sky</b> é', "the end. 🎬"]


def clip(path: Path, seed: int, **changes: int) -> Path:
    request = {"seed": seed, "width_px": 96, "height_px": 64, "fps": 7, "frame_count": 14} | changes
    make_clip(path, SimpleNamespace(**request))
    return path


@pytest.fixture
def clips(tmp_path: Path) -> list[Path]:
    return [clip(tmp_path / f"{i}.mp4", i) for i in range(3)]


def pictures(path: Path) -> list[str]:
    with av.open(str(path)) as container:
        return [
            hashlib.md5(frame.to_ndarray(format="rgb24").tobytes()).hexdigest() for frame in container.decode(video=0)
        ]


def test_clips_that_agree_keep_every_picture(clips: list[Path], tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    facts = join([Part(path, text) for path, text in zip(clips, CAPTIONS, strict=True)], "Title: é", film)
    assert (facts.frame_count, facts.width_px, facts.height_px, facts.rate) == (42, 96, 64, 7)
    assert pictures(film) == [each for path in clips for each in pictures(path)]
    with av.open(str(film)) as container:
        assert container.metadata["title"] == "Title: é"
        assert [stream.codec_context.name for stream in container.streams] == ["h264", "mov_text"]
        times = [float(frame.pts * frame.time_base) for frame in container.decode(video=0)]
    assert times == pytest.approx([i / 7 for i in range(42)], abs=1e-4)


def test_captions_read_as_given_over_their_clips(clips: list[Path], tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    join([Part(path, text) for path, text in zip(clips, CAPTIONS, strict=True)], "t", film)
    cues = []
    with av.open(str(film)) as container:
        for packet in container.demux(subtitles=0):
            if packet.size > 2:
                begin, length = float(packet.pts * packet.time_base), float(packet.duration * packet.time_base)
                cues.append((round(begin, 3), round(length, 3), bytes(packet)[2:].decode()))
    assert cues == [(0.0, 2.0, CAPTIONS[0]), (2.0, 2.0, CAPTIONS[1]), (4.0, 2.0, CAPTIONS[2])]


@pytest.mark.parametrize("other", [{"width_px": 128}, {"fps": 14, "frame_count": 28}])
def test_clips_that_disagree_are_encoded_again(clips: list[Path], tmp_path: Path, other: dict[str, int]) -> None:
    odd = clip(tmp_path / "odd.mp4", 9, **other)
    film = tmp_path / "film.mp4"
    facts = join([Part(path, "x") for path in (clips[0], odd, clips[2])], "t", film)
    assert (facts.width_px, facts.height_px, facts.rate) == (96, 64, 7)
    assert facts.frame_count == len(pictures(film))
    with av.open(str(film)) as container:
        times = [float(frame.pts * frame.time_base) for frame in container.decode(video=0)]
    steps = [after - before for before, after in itertools.pairwise(times)]
    assert steps == pytest.approx([1 / 7] * len(steps), abs=1e-4)
    assert facts.duration_s == pytest.approx(6, abs=0.01)


@pytest.mark.parametrize("agree", [True, False])
def test_the_same_clips_give_the_same_bytes(clips: list[Path], tmp_path: Path, agree: bool) -> None:
    if not agree:
        clips[1] = clip(tmp_path / "odd.mp4", 9, width_px=128)
    films = []
    for number in range(2):
        film = tmp_path / f"film{number}.mp4"
        join([Part(path, "caption") for path in clips], "t", film)
        films.append(film.read_bytes())
    assert films[0] == films[1]
    assert films[0].index(b"moov") < films[0].index(b"mdat"), "a browser could not play it while it comes"


@pytest.mark.parametrize("damage", ["empty", "junk", "cut", "missing"])
def test_a_damaged_clip_is_named(clips: list[Path], tmp_path: Path, damage: str) -> None:
    whole = clips[1].read_bytes()
    if damage == "missing":
        clips[1].unlink()
    else:
        clips[1].write_bytes({"empty": b"", "junk": b"\x07" * 9000, "cut": whole[: len(whole) // 8]}[damage])
    with pytest.raises(DamagedPartError) as caught:
        join([Part(path, "") for path in clips], "t", tmp_path / "film.mp4")
    assert caught.value.index == 1


def test_facts_of_what_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    path.write_text("#EXTM3U\nhttp://127.0.0.1/secret\n")
    with pytest.raises(DamagedVideoError):
        read_facts(path)


def test_files_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    artifacts = Artifacts(tmp_path, "me")
    with pytest.raises(ZeroDivisionError), artifacts.temporary("films") as path:
        path.write_bytes(b"half")
        raise ZeroDivisionError
    assert not list((tmp_path / "films").iterdir())
    with artifacts.temporary("films") as path:
        path.write_bytes(b"whole")
        artifacts.publish(path, artifacts.film("a" * 32))
    assert [file.name for file in (tmp_path / "films").iterdir()] == ["a" * 32 + ".mp4"]
    digest = hashlib.sha256(b"whole").hexdigest()
    assert artifacts.is_intact(artifacts.film("a" * 32), digest, 5)
    assert not artifacts.is_intact(artifacts.film("a" * 32), digest, 6)
    assert not artifacts.is_intact(artifacts.film("a" * 32), "0" * 64, 5)
    assert not artifacts.is_intact(artifacts.film("b" * 32), digest, 5)


@pytest.mark.parametrize("name", ["", "..", "../" + "a" * 30, "A" * 32, "a" * 31, "a" * 32 + "\n", "é" * 32])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    artifacts = Artifacts(tmp_path, "me")
    for place in (artifacts.film, artifacts.clip):
        with pytest.raises(ValueError, match="hexadecimal"):
            place(name)


def test_a_start_clears_up_what_a_kill_left(tmp_path: Path) -> None:
    artifacts = Artifacts(tmp_path, "me")
    running = take(tmp_path, "running-1")
    part = f"-{'5' * 16}.part"
    old = {f"clips/.me{part}", f"films/.dead{part}", f"clips/{'1' * 64}.mp4", f"films/{'2' * 32}.mp4"}
    kept = {f"clips/.running-1{part}", f"clips/{'3' * 64}.mp4", f"clips/{'4' * 64}.mp4", "films/notes.txt"}
    for name in old | kept:
        (tmp_path / name).write_bytes(b"x")
        if "4444" not in name:
            os.utime(tmp_path / name, (0, 0))
    removed = artifacts.sweep(lambda sha256: sha256 == "3" * 64, lambda _: False)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*")}
    assert (removed, left) == (4, kept)
    os.close(running)
    assert artifacts.sweep(lambda _: True, lambda _: True) == 1
    (tmp_path / f"clips/.me{part}").write_bytes(b"x")
    (tmp_path / f"clips/.running-1{part}").write_bytes(b"x")
    assert artifacts.sweep_temporary("running-1") == 1
    assert (tmp_path / f"clips/.me{part}").exists()


def test_a_folder_has_one_gateway_of_a_name(tmp_path: Path) -> None:
    held = take(tmp_path, "me")
    assert is_held(tmp_path, "me")
    assert not is_held(tmp_path, "other")
    with pytest.raises(ValueError, match="another gateway named 'me' runs on this data_dir"):
        take(tmp_path, "me")
    os.close(held)
    assert not is_held(tmp_path, "me")
    os.close(take(tmp_path, "me"))


def test_a_disk_without_room(tmp_path: Path) -> None:
    artifacts = Artifacts(tmp_path, "me")
    with pytest.raises(FilmFailedError) as caught:
        artifacts.require_room(1 << 60)
    assert caught.value.error.reason == "DISK_FULL"
    assert int(caught.value.error.metadata["needed_bytes"]) > 1 << 60
    assert int(caught.value.error.metadata["free_bytes"]) == pytest.approx(artifacts.free_bytes(), rel=0.1)
