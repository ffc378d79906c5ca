"""The script: its schema, the check of the model's answer, its seeds."""

from __future__ import annotations

import json
from typing import Any

import pytest

from halfreel_gateway import script, seeds
from halfreel_gateway.script import NoScriptError, ScriptLimits, parse
from halfreel_gateway.script_reader import ScriptReader

ANY = ScriptLimits(scene_count=None, min_seconds=1, max_seconds=8)
SCENE = {"narration": "n", "picture": "p", "seconds": 2, "motion": "still"}


def answer(**changes: Any) -> str:
    return json.dumps({"title": "t", "scenes": [SCENE]} | changes)


def test_the_schema_bounds_everything_in_this_order() -> None:
    schema = json.loads(ScriptLimits(3, 2, 5).schema())
    assert list(schema["properties"]) == ["title", "scenes"]
    scenes = schema["properties"]["scenes"]
    assert (scenes["minItems"], scenes["maxItems"]) == (3, 3)
    items = scenes["items"]
    assert list(items["properties"]) == items["required"] == ["narration", "picture", "seconds", "motion"]
    assert items["properties"]["seconds"] == {"type": "integer", "minimum": 2, "maximum": 5}
    assert schema["additionalProperties"] is items["additionalProperties"] is False
    assert "pattern" not in ANY.schema()
    assert "$ref" not in ANY.schema()
    assert len(ANY.schema()) < 16 * 1024
    free = json.loads(ANY.schema())["properties"]["scenes"]
    assert (free["minItems"], free["maxItems"]) == (1, 8)


@pytest.mark.parametrize("count", [None, 1, 8])
def test_the_longest_script_is_as_long_as_it_says(count: int | None) -> None:
    limits = ScriptLimits(count, 1, 8)
    text = "x" * limits.max_text_characters
    scene = {"narration": text, "picture": text, "seconds": 8, "motion": "toward"}
    longest = {"title": "x" * 60, "scenes": [scene] * limits.most_scenes}
    written = len(json.dumps(longest, separators=(",", ":")))
    assert written <= limits.most_characters <= written + 1


def test_texts_are_shortened_to_the_room_there_is() -> None:
    for tokens in (10_000, 2_000, 1_000):
        fitting = ANY.within(tokens)
        assert fitting is not None
        assert fitting.most_characters <= max(tokens, ANY.most_characters)
        assert 16 <= fitting.max_text_characters <= 160
    assert ANY.within(10_000) == ANY
    assert ANY.within(300) is None
    assert ScriptLimits(1, 1, 8).within(300) is not None
    assert [ANY.shorter(draft).max_text_characters for draft in (1, 2, 3, 9)] == [160, 80, 40, 16]


def test_a_script_is_read() -> None:
    read = parse(answer(title=" A  film\u0000\n"), ANY)
    assert (read.title, len(read.scenes), read.scenes[0].motion) == ("A film", 1, "still")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "once upon a time",
        "{" * 5000,
        "[" * 100_000,
        answer(title=""),
        answer(title=" \n"),
        answer(title="x" * 61),
        answer(title=5),
        answer(scenes=[]),
        answer(scenes=[SCENE] * 9),
        answer(scenes=[SCENE | {"seconds": 0}]),
        answer(scenes=[SCENE | {"seconds": 9}]),
        answer(scenes=[SCENE | {"seconds": 2.5}]),
        answer(scenes=[SCENE | {"seconds": True}]),
        answer(scenes=[SCENE | {"seconds": "2"}]),
        answer(scenes=[SCENE | {"motion": "sideways"}]),
        answer(scenes=[SCENE | {"picture": "\t\r\n"}]),
        answer(scenes=[SCENE | {"narration": "x" * 161}]),
        answer(scenes=[SCENE | {"extra": 1}]),
        answer(scenes=[{}]),
        answer(more=1),
        '{"title":"t","scenes":[{"narration":"n","picture":"p","seconds":NaN,"motion":"still"}]}',
    ],
)
def test_what_is_no_script_is_refused(text: str) -> None:
    with pytest.raises(NoScriptError):
        parse(text, ANY)


def test_the_number_of_scenes_is_as_asked() -> None:
    with pytest.raises(NoScriptError, match="1 scenes; 2"):
        parse(answer(), ScriptLimits(2, 1, 8))


def test_texts_are_always_valid_utf8() -> None:
    read = parse('{"title":"a\\ud800b","scenes":[' + json.dumps(SCENE) + "]}", ANY)
    assert read.title == "a b"
    assert script.clean_text("\u0000 a\u0085b\ud800") == "a b"
    read.title.encode()


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_script_is_read_while_it_is_written(size: int) -> None:
    scenes = [SCENE | {"narration": f'brackets }}] {{[ and a quote " and \\ in scene {i}'} for i in range(3)]
    text = answer(scenes=scenes)
    reader = ScriptReader()
    parts = [reader.take(text[start : start + size]) for start in range(0, len(text), size)]
    told = [part for part in parts if part is not None]
    assert reader.text == text
    assert told[-1] == parse(text, ANY)
    assert [len(part.scenes) for part in told] == ([3] if size > len(text) else [1, 2, 3])


@pytest.mark.parametrize(
    "text", ["once upon a {time} [", "[[{}]]", '{"scenes":[{}]', "}" * 10, '{"title":"a","scenes":[{"narration":"}"}']
)
def test_nothing_is_told_of_what_is_no_script(text: str) -> None:
    reader = ScriptReader()
    assert [reader.take(character) for character in text] == [None] * len(text)


def test_white_space_is_no_obstacle() -> None:
    part = ScriptReader().take(json.dumps({"title": "t", "scenes": [SCENE, SCENE]}, indent=2)[:-5])
    assert part is not None
    assert len(part.scenes) == 2


def test_the_question() -> None:
    assert script.question("a cat", 3) == "Idea: a cat\nScenes: 3"
    assert script.question("a cat", None) == "Idea: a cat\nScenes: any"


@pytest.mark.parametrize(("fps", "frames", "seconds"), [(7, 70, (1, 10)), (1, 8, (2, 8)), (60, 50, (1, 0))])
def test_whole_seconds_that_a_model_can_make(fps: int, frames: int, seconds: tuple[int, int]) -> None:
    assert script.seconds_range(fps, frames) == seconds


def test_seeds_follow_from_the_films_alone() -> None:
    all_seeds = [seeds.script_seed(7, draft) for draft in (1, 2, 3)] + [seeds.scene_seed(7, i) for i in range(8)]
    assert len(set(all_seeds)) == len(all_seeds)
    assert all(0 <= seed < 2**63 for seed in all_seeds)
    # Fixed for good: a film's seed must give the same film after an update.
    assert (seeds.scene_seed(0, 0), seeds.script_seed(0, 1)) == (5781559387006414368, 596761954086482096)
    assert 0 <= seeds.random_seed() < 2**63
