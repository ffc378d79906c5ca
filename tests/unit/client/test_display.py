"""How a film in the making is told: the script while it is written, figures, summaries, and what is safe to print."""

from __future__ import annotations

import io
import itertools
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from halfreel.gpu.v1 import gpu_pb2
from halfreel_client import (
    Artifact,
    Film,
    FilmError,
    FilmEvent,
    FilmSettings,
    FilmState,
    Levers,
    MemoryProfile,
    Motion,
    PhasePeak,
    Rejoining,
    Scene,
    SceneChanged,
    SceneStage,
    SceneState,
    SceneStep,
    ScriptDelta,
    Snapshot,
    StageFigure,
    StateChanged,
    Unavailable,
    Variant,
    Waiting,
)
from halfreel_client.display.amounts import bytes_text, seconds_text
from halfreel_client.display.as_json import event_json, json_line
from halfreel_client.display.film_progress import FilmProgress
from halfreel_client.display.live_view import LiveView
from halfreel_client.display.partial_script import PartialScript, read_partial
from halfreel_client.display.plain_view import PlainView
from halfreel_client.display.printable import printable
from halfreel_client.display.summary import cheaper_text, summary_of
from halfreel_client.film_settings import create_request, settings_from
from halfreel_client.memory import MemoryPeak

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SCRIPT = json.dumps(
    {
        "title": 'A "red" circle\\ café 😀',
        "scenes": [
            {"narration": "It\nrises.", "picture": "sea", "seconds": 2},
            {"picture": "sky", "narration": "It sets."},
        ],
    },
    ensure_ascii=True,
)


def scene(index: int, state: SceneState = SceneState.QUEUED, **changes: Any) -> Scene:
    values: dict[str, Any] = {
        "index": index, "state": state, "narration": f"Scene {index}.", "picture": "", "motion": Motion.LEFT,
        "requested_duration_s": 2.0, "seed": 1, "attempt_count": 1, "clip": None, "stages": (), "phase_peaks": (),
        "error": None, "levers": None, "rungs": (), "variant": None,
    }  # fmt: skip
    return Scene(**(values | changes))


def film(state: FilmState = FilmState.RENDERING, **changes: Any) -> Film:
    values: dict[str, Any] = {
        "film_id": "f" * 32, "request_id": "r", "idea": "an idea", "settings": FilmSettings(seed=3), "state": state,
        "waiting_reason": "", "progress_ratio": 0.0, "title": "", "scenes": (), "video": None, "error": None,
        "create_time": NOW, "update_time": NOW, "end_time": None, "script_duration_s": None,
        "script_phase_peaks": (), "render_duration_s": None, "join_duration_s": None,
    }  # fmt: skip
    return Film(**(values | changes))


def event(what: Any, number: int = 0) -> FilmEvent:
    return FilmEvent(number, NOW, what)


def test_a_script_is_readable_at_every_character() -> None:
    seen = [read_partial(SCRIPT[:end]) for end in range(len(SCRIPT) + 1)]
    assert seen[0] == PartialScript()
    assert seen[-1] == PartialScript('A "red" circle\\ café 😀', ("It rises.", "It sets."))
    for before, after in itertools.pairwise(seen):
        assert after.title.startswith(before.title)
        assert len(after.narrations) >= len(before.narrations)
    assert any(0 < len(script.title) < len(seen[-1].title) for script in seen)
    assert any(script.narrations == ("It r",) for script in seen)


@pytest.mark.parametrize(
    "text",
    ["", "}", "[1, 2]", "null", "words", '{"title": 7, "scenes": {"a": 1}}', '{"scenes": [7, null, "x"]}', "{" * 900],
)
def test_a_script_that_is_none_shows_nothing(text: str) -> None:
    assert read_partial(text) == PartialScript()


def test_progress_of_a_film() -> None:
    progress = FilmProgress()
    progress.take(event(Snapshot(film(FilmState.QUEUED))))
    progress.take(event(StateChanged(FilmState.WRITING_SCRIPT, "", 0.0), 1))
    progress.take(event(ScriptDelta('{"title":"Lost"', 1)))
    progress.take(event(ScriptDelta('{"title":"Red","scenes":[{"narration":"One', 2)))
    assert progress.script == PartialScript("Red", ("One",))
    progress.take(event(SceneChanged(scene(0, SceneState.RENDERING)), 2))
    progress.take(event(SceneStage(0, "denoise")))
    progress.take(event(SceneStep(0, 3, 12, 0.5, 4.5)))
    assert (progress.scenes[0].ratio, progress.scenes[0].remaining_s) == (0.25, 4.5)
    progress.take(event(SceneStage(0, "decode")))
    assert progress.scenes[0].remaining_s is None
    progress.take(event(SceneChanged(scene(0, SceneState.QUEUED)), 3))
    assert progress.scenes[0].ratio == 0
    progress.take(event(SceneChanged(scene(0, SceneState.SUCCEEDED)), 4))
    assert progress.scenes[0].ratio == 1
    progress.take(event(Waiting("no video server")))
    assert progress.waiting_reason == "no video server"
    progress.take(event(Rejoining(Unavailable("gone"), 1.0)))
    assert progress.rejoining


def test_scenes_at_work_while_the_script_is_written() -> None:
    console = Console(file=io.StringIO(), width=80)
    with LiveView(Console(file=io.StringIO(), width=80), "an idea") as view:
        for item in (
            event(Snapshot(film(FilmState.WRITING_SCRIPT))),
            event(ScriptDelta('{"title":"Red","scenes":[{"narration":"Scene 0."},{"narration":"And th', 1)),
            event(SceneChanged(scene(0, SceneState.RENDERING)), 2),
            event(SceneStep(0, 6, 12, 0.5, 4.5)),
        ):
            view.event(item)
        console.print(view._render())
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.count("Scene 0.") == 1
    assert "6/12" in shown
    assert "And th▌" in shown
    progress = FilmProgress()
    progress.take(event(Snapshot(film(FilmState.WRITING_SCRIPT))))
    progress.take(event(SceneChanged(scene(0, SceneState.SUCCEEDED)), 2))
    early = progress.ratio
    progress.take(event(StateChanged(FilmState.RENDERING, "Red", 0.0), 3))
    assert 0.1 < early < progress.ratio


def test_what_was_made_cheaper_is_said() -> None:
    levers = Levers(
        decode_chunk_frame_count=1, attention_backend="sdpa", split_guidance=True, feed_forward_chunk_count=1,
        offload_idle_parts=False, stream_weights=False,
    )  # fmt: skip
    clip = Artifact(size_bytes=1, sha256="", width_px=64, height_px=32, frame_count=2, fps=7, duration_s=0.3)
    variant = Variant(width_px=64, height_px=32, segment_frame_count=2, levers=levers)
    cheap = scene(0, SceneState.SUCCEEDED, clip=clip, variant=variant, rungs=("decode_chunk_1",))
    assert cheaper_text(cheap) == "; made cheaper to fit: 64x32, decode chunk 1"
    assert cheaper_text(scene(0)) == ""
    assert cheaper_text(scene(0, trades=("reuse_features",))) == "; quality given for time: reuse features"


def test_a_profile_goes_into_the_message_and_comes_back() -> None:
    asked = FilmSettings(
        profile=MemoryProfile.SAVER, allow_cheaper=True, seed=3, trades=("partial_guidance",), continuous=True
    )
    message = create_request("an idea", asked, "r").settings
    assert message.profile == gpu_pb2.MEMORY_PROFILE_SAVER
    assert settings_from(message) == asked
    assert settings_from(create_request("an idea", FilmSettings(), "r").settings) == FilmSettings()


def test_what_a_snapshot_holds_is_not_told_again() -> None:
    told: list[str] = []
    view, progress = PlainView(told.append), FilmProgress()
    done = film(scenes=(scene(0, SceneState.SUCCEEDED),), title="Red")
    for item in (
        event(Snapshot(done), 7),
        event(StateChanged(FilmState.WRITING_SCRIPT, "", 0.0), 3),
        event(SceneChanged(scene(0, SceneState.RENDERING)), 6),
        event(SceneChanged(scene(1, SceneState.RENDERING)), 8),
    ):
        view.event(item)
        progress.take(item)
    assert told == ["title: Red", "film: rendering", "scene 1: “Scene 0.”", "scene 2: “Scene 1.”"]
    assert progress.state is FilmState.RENDERING
    assert progress.scenes[0].state is SceneState.SUCCEEDED


def test_a_model_cannot_steer_the_terminal() -> None:
    told: list[str] = []
    nasty = "\x1b[2J\x07[bold]red[/bold]\r\n\u202eevil"
    PlainView(told.append).event(event(SceneChanged(scene(0, narration=nasty))))
    assert told == ["scene 1: “ [2J [bold]red[/bold]   evil”"]
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=80, color_system=None)
    with LiveView(console, "idea") as view:
        view.event(event(Snapshot(film(FilmState.WRITING_SCRIPT, title=nasty, scenes=(scene(0, narration=nasty),)))))
        view.done(film(FilmState.SUCCEEDED, title=nasty, scenes=(scene(0, narration=nasty),)), (), None)
    assert "\x1b[2J" not in output.getvalue()
    assert "\x07" not in output.getvalue()
    assert "[bold]red[/bold]" in output.getvalue()


def test_the_live_picture() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None, record=True)
    view = LiveView(console, "idea")
    view.event(event(Snapshot(film(title="Red", scenes=(scene(0, SceneState.RENDERING), scene(1))))))
    view.event(event(SceneStage(0, "denoise")))
    view.event(event(SceneStep(0, 3, 12, 0.5, 4.5)))
    console.print(view._render())
    picture = console.export_text()
    (row,) = [line for line in picture.splitlines() if line.startswith(" 1")]
    assert row.split()[:4] == ["1", "Scene", "0.", "denoise"]
    assert row.split()[-4:] == ["3/12", "4.5", "s", "left"]
    assert "queued" in picture


def test_summary_of_a_film() -> None:
    def peak(phase: str, allocated: int) -> PhasePeak:
        return PhasePeak(phase, MemoryPeak(allocated, allocated * 2), 1.0)

    clip = Artifact(size_bytes=1, sha256="", width_px=64, height_px=64, frame_count=8, fps=8, duration_s=1.0)
    scenes = tuple(
        scene(
            index,
            SceneState.SUCCEEDED,
            clip=clip,
            stages=(StageFigure("denoise", 2.0), StageFigure("keyframe", 0.5), StageFigure("upscale", 1.0)),
            phase_peaks=(peak("denoise", 10 + index),),
        )
        for index in (0, 1)
    )
    done = film(
        FilmState.SUCCEEDED, scenes=scenes, video=clip, script_duration_s=0.25, join_duration_s=0.05,
        script_phase_peaks=(peak("prefill", 3),), end_time=NOW.replace(second=15),
    )  # fmt: skip
    summary = summary_of(done)
    assert summary.stage_seconds == (
        ("script", 0.25), ("keyframe", 1.0), ("denoise", 4.0), ("upscale", 2.0), ("join", 0.05), ("total", 10.0),
    )  # fmt: skip
    assert [(figure.server, figure.phase, figure.allocated_bytes) for figure in summary.peaks] == [
        ("llm", "prefill", 3),
        ("video", "denoise", 11),
    ]
    failed = film(FilmState.FAILED, error=FilmError(13, "INTERNAL", "no", {}))
    assert summary_of(failed).stage_seconds == ()


def test_events_as_json() -> None:
    line = json.loads(json_line(event_json(event(SceneChanged(scene(0, SceneState.QUEUED, narration="é")), 4))))
    assert (line["event"], line["sequence_number"], line["time"]) == ("scene_changed", 4, "2026-01-02T03:04:05+00:00")
    assert (line["scene"]["state"], line["scene"]["narration"]) == ("queued", "é")
    line = json.loads(json_line(event_json(event(Rejoining(Unavailable("gone", reason="DRAINING"), 0.5)))))
    assert (line["error"]["code"], line["error"]["reason"], line["delay_s"]) == ("UNAVAILABLE", "DRAINING", 0.5)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (2048, "2 KiB"), (5 << 20, "5.0 MiB"), (12_487_168_000, "11.6 GiB"), (3 << 40, "3.0 TiB")],
)  # fmt: skip
def test_bytes(count: int, text: str) -> None:
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.04 s"), (59.94, "59.9 s"), (59.96, "1:00"), (65, "1:05"), (3599.7, "1:00:00"), (7384, "2:03:04")],
)  # fmt: skip
def test_seconds(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


def test_printable_keeps_letters_of_every_script() -> None:
    assert printable("Ein rotes 圆 über dem море 😀") == "Ein rotes 圆 über dem море 😀"


def test_json_refuses_what_it_cannot_tell(tmp_path: Path) -> None:
    from halfreel_client.display.as_json import as_json

    assert as_json({"path": tmp_path, "jpeg": b"ab"}) == {"path": str(tmp_path), "jpeg": "YWI="}
    with pytest.raises(TypeError):
        as_json(object())
