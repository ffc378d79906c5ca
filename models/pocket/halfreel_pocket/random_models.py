"""Random models of the real classes, saved to a folder from a seed.

They stand in for trained weights where there are none; they know nothing.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch

from halfreel_pocket.scripts import caption_words

_WORDS = sorted(caption_words())


def save_random(name: str, path: Path, seed: int) -> None:
    """Build the random model `name` from `seed` and write it to the folder `path`, FP16 safetensors."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # Imported where they are used: an image has the libraries of the models that it serves, and no others.
        if name == "glm":
            from halfreel_pocket import glm

            glm.save(glm.build(seed).half(), glm.train_tokenizer(_lines()), path)
            return
        from halfreel_pocket import keyframe, svd
        from halfreel_pocket.vae import build_temporal, to_image_vae

        vae = build_temporal()
        if name == "keyframe":
            keyframe.build(seed, to_image_vae(vae), _WORDS).to(torch.float16).save_pretrained(path)
            defaults = keyframe.DEFAULTS
        else:
            svd.build(seed, vae).to(torch.float16).save_pretrained(path)
            defaults = svd.DEFAULTS
    (path / "halfreel.json").write_text(json.dumps(defaults, indent=2) + "\n", encoding="utf-8")


def _lines() -> Iterator[str]:
    """Text enough to learn a full set of pieces from: every pair of words as one, and a script's frame."""
    for first in _WORDS:
        for second in _WORDS:
            yield f"{first} {second}{first}"
            yield json.dumps({"title": first, "scenes": [{"picture": second}]}, separators=(",", ":"))
