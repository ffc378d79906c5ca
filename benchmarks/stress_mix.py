"""Mixed requests to the language model's and the video server, drawn from a seed.

It does not know what becomes of them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from llm_bench import prompt_of

from halfreel.gpu.v1 import gpu_pb2
from halfreel.llm.v1 import llm_pb2
from halfreel.video.v1 import video_pb2

# A third of the clips have SVD-XT's own size.
SIZES = ((1024, 576), (1024, 576), (768, 448), (576, 1024), (512, 512), (256, 320))
FRAME_COUNTS = (25, 25, 14, 8, 3)


@dataclass(frozen=True)
class Wanted:
    """One request: what it is, of which server, and whether it must be refused."""

    kind: str
    server: str
    message: Any
    refused: bool = False


def clip(dice: random.Random, *, tiny: bool) -> Wanted:
    """Any clip."""
    width, height = dice.choice(SIZES)
    wanted = video_pb2.GenerateRequest(
        prompt="a red circle",
        width_px=64 if tiny else width,
        height_px=64 if tiny else height,
        frame_count=dice.choice((2, 3)) if tiny else dice.choice(FRAME_COUNTS),
        step_count=dice.randint(1, 2),
        guidance_scale=dice.choice((1.0, 3.0, 3.0)),
        seed=dice.randrange(1000),
        allow_cheaper=dice.random() < 0.7,
        profile=dice.choice(gpu_pb2.MemoryProfile.values()),
    )
    if dice.random() < 0.2:
        wanted.decode_chunk_frame_count = dice.choice((1, 2, 4, 8))
    if dice.random() < 0.2:
        levers = wanted.levers
        levers.attention_backend, levers.decode_chunk_frame_count = "sdpa", wanted.decode_chunk_frame_count or 4
        levers.offload_idle_parts = dice.random() < 0.7
        levers.stream_weights = dice.random() < 0.5
        levers.split_guidance = dice.random() < 0.5
        levers.feed_forward_chunk_count = dice.choice((1, 2, 8))
    return Wanted("clip", "video", wanted)


def too_big() -> Wanted:
    """A clip of which no card has the memory: 25 frames of 2048x2048 decoded at once."""
    big: dict[str, Any] = {"width_px": 2048, "height_px": 2048, "frame_count": 25, "step_count": 1}
    levers = video_pb2.GenerateResponse.Levers(
        decode_chunk_frame_count=25, attention_backend="sdpa", feed_forward_chunk_count=1
    )
    return Wanted("too_big", "video", video_pb2.GenerateRequest(prompt="a wall", seed=1, levers=levers, **big), True)


def reply(dice: random.Random) -> Wanted:
    """A reply of 16 to 64 tokens."""
    words = prompt_of(dice.randrange(1000), dice.choice((5, 20)))
    message = llm_pb2.GenerateRequest(
        messages=[llm_pb2.Message(role=llm_pb2.ROLE_USER, content=words)],
        max_output_token_count=dice.randint(16, 64),
        seed=dice.randrange(1000),
    )
    return Wanted("reply", "llm", message)


def mix(dice: random.Random, count: int, *, tiny: bool) -> list[Wanted]:
    """So many clips and replies, with four calls and two clips that are too big among them."""
    calls: list[Any] = [gpu_pb2.SleepRequest(), gpu_pb2.WakeRequest(), gpu_pb2.ClearMemoryRequest()]
    found = [clip(dice, tiny=tiny) if number % 2 else reply(dice) for number in range(count)]
    found += [Wanted("call", dice.choice(("llm", "video")), dice.choice(calls)) for _ in range(4)]
    found += [too_big() for _ in range(2)]
    dice.shuffle(found)
    return found
