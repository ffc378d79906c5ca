"""The pocket models do their work: a script that tells the idea, a first picture of it, a film in which it moves.

A small part of benchmarks/pocket_quality.py, which measures it.
"""

import json

import pytest
import sentencepiece
import torch
from diffusers import StableDiffusionPipeline, StableVideoDiffusionPipeline
from transformers import GlmForCausalLM

import halfreel_pocket
from halfreel_gateway import script
from halfreel_pocket import detector, glm, scripts, steadiness
from halfreel_pocket.words import COLOURS, MOTIONS, SHAPES

SCENES = [
    scripts.Scene("large", "red", "circle", "sky", "right"),
    scripts.Scene("large", "green", "square", "snow", "still"),
    scripts.Scene("medium", "yellow", "ring", "sea", "up"),
]


@pytest.fixture(scope="module")
def write():
    folder = halfreel_pocket.folder("glm")
    model = GlmForCausalLM.from_pretrained(folder, dtype=torch.float32)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))

    def answer(*messages):
        asked = torch.tensor([glm.prompt_ids(pieces, messages)])
        tokens = model.generate(asked, max_new_tokens=300, do_sample=False)[0, asked.shape[1] :]
        return pieces.decode([token for token in tokens.tolist() if glm.EOS_ID < token < glm.PIECE_COUNT])

    return answer


@pytest.mark.parametrize(
    ("idea", "things"),
    [
        (
            "a red circle moving over a blue sky, then a green square in the snow",
            [("red circle", "sky"), ("green square", "snow")],
        ),
        ("A YELLOW STAR ON THE SAND", [("yellow star", "sand")]),
    ],
)
def test_a_script_tells_the_things_of_its_idea_in_order(write, idea, things):
    text = write(("system", script.INSTRUCTION), ("user", script.question(idea, None)))
    written = script.parse(text, script.ScriptLimits(None, 1, 8)).scenes
    assert len(written) == len(things)
    for scene, (thing, place) in zip(written, things, strict=True):
        assert thing in scene.picture
        assert place in scene.picture


def test_a_greeting_is_answered_and_no_script_is_written(write):
    text = write(("user", "Hello!"))
    assert text.strip()
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(text)


@torch.inference_mode()
def test_pictures_show_what_their_words_say_and_a_film_moves_as_told():
    keyframe, svd = (halfreel_pocket.folder(name) for name in ("keyframe", "svd"))
    draw = StableDiffusionPipeline.from_pretrained(keyframe, dtype=torch.float32, safety_checker=None)
    move = StableVideoDiffusionPipeline.from_pretrained(svd, dtype=torch.float32)
    defaults, steps = (json.loads((folder / "halfreel.json").read_text()) for folder in (keyframe, svd))
    size = {"height": defaults["height_px"], "width": defaults["width_px"]}
    for pipeline in (draw, move):
        pipeline.set_progress_bar_config(disable=True)
    pictures = draw(
        [scripts.picture(scene) for scene in SCENES],
        num_inference_steps=defaults["step_count"],
        guidance_scale=defaults["guidance_scale"],
        generator=torch.Generator().manual_seed(3),
        output_type="pt",
        **size,
    ).images
    found = detector.find(pictures * 2 - 1)
    assert [list(COLOURS)[number] for number in found.colour] == [scene.colour for scene in SCENES]
    assert [list(SHAPES)[number] for number in found.shape] == [scene.shape for scene in SCENES]
    frames = move(
        draw.numpy_to_pil(pictures[0].permute(1, 2, 0).numpy()),
        num_frames=steps["frame_count"],
        num_inference_steps=steps["step_count"],
        min_guidance_scale=1.0,
        max_guidance_scale=steps["guidance_scale"],
        motion_bucket_id=steps["motion_bucket"],
        fps=steps["fps"],
        generator=torch.Generator().manual_seed(3),
        output_type="pt",
        **size,
    ).frames[0]
    shown = detector.find(frames * 2 - 1)
    assert float((shown.colour == list(COLOURS).index("red")).float().mean()) >= 0.9
    assert float((shown.shape == list(SHAPES).index("circle")).float().mean()) >= 0.8
    assert list(MOTIONS)[int(detector.motion_of(shown, steps["frame_count"])[0])] == "right"
    assert steadiness.drift(frames * 2 - 1) < 0.06
    assert steadiness.flicker(frames * 2 - 1) < 0.04
    assert steadiness.jump_px(shown) < 2.0
