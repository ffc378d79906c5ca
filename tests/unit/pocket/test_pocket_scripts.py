"""The language of the pocket world: requests and the scripts that answer them."""

import json
import random

from halfreel_gateway import script
from halfreel_pocket import scripts
from halfreel_pocket.words import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SIZES


def test_every_script_is_valid_for_the_gateway():
    rng = random.Random(1)
    for _ in range(500):
        request = scripts.random_request(rng)
        limits = script.ScriptLimits(request.scene_count or None, 1, 8)
        parsed = script.parse(request.script, limits)
        assert len(parsed.scenes) == len(request.scenes)
        assert request.script == json.dumps(json.loads(request.script), separators=(",", ":"))


def test_a_script_says_what_its_scenes_are():
    rng = random.Random(2)
    for _ in range(200):
        scene = scripts.random_scene(rng)
        written = json.loads(scripts.script_of([scene]))["scenes"][0]
        thing, where = f"{scene.size} {scene.colour} {scene.shape}", BACKGROUNDS[scene.background][0]
        for text in (written["picture"], written["narration"]):
            assert thing in text
            assert where in text
        assert written["motion"] == scene.motion
        assert MOTIONS[scene.motion][0][0] in written["picture"]


def test_ideas_of_held_out_looks_name_every_thing():
    rng = random.Random(3)
    for _ in range(200):
        request = scripts.random_request(rng, held_out=True)
        assert all(scene.is_held_out for scene in request.scenes)
        idea = request.idea.lower()
        for scene in request.scenes:
            assert any(word in idea for word in COLOURS[scene.colour])
            assert any(word in idea for word in SHAPES[scene.shape])
            assert any(phrase.split()[-1] in idea for phrase in BACKGROUNDS[scene.background])


def test_training_never_shows_a_held_out_look():
    rng = random.Random(4)
    assert not any(scene.is_held_out for _ in range(1000) for scene in scripts.random_request(rng).scenes)


def test_no_name_means_two_things():
    for names in (COLOURS, SHAPES, SIZES, BACKGROUNDS):
        every = [name for group in names.values() for name in group]
        assert len(every) == len(set(every))


def test_captions_use_only_the_words_they_say():
    rng = random.Random(5)
    known = scripts.caption_words()
    for _ in range(500):
        caption = scripts.caption(scripts.random_scene(rng), rng)
        words = caption.lower().replace(",", " ").replace("-", " ").split()
        assert set(words) <= known, caption
