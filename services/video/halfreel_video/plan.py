"""Says what memory a clip would take on a card, there or imagined: `python -m halfreel_video.plan [--json] [...]`.

Needs no GPU, no server and no model: sizes are those of the default model (SVD-XT with sd-turbo), coefficients the
user's own calibration of that card or else the shipped ones. The exit code is 0 when the clip or a cheaper form fits.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from google.protobuf.json_format import MessageToDict

from halfreel_runtime.budget import parse_budget, parse_bytes
from halfreel_runtime.errors import FailedPrecondition, HalfreelError, InvalidArgument
from halfreel_runtime.plan import Profile, Room
from halfreel_video.architecture import Architecture
from halfreel_video.clip import segment_frame_counts
from halfreel_video.coefficients import load, shipped_architecture
from halfreel_video.estimate import Estimate
from halfreel_video.planner import Planner, Wish

# As `GetModel` tells them of the default model.
DEFAULTS = {"width": 1024, "height": 576, "frames": 25, "steps": 25}
CLIP_FRAME_COUNT = 25
_LIMITS = {"width": (64, 2048), "height": (64, 2048), "frames": (2, 1800), "steps": (1, 100)}
_DTYPES = {"auto": "float16", "fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
_MODEL_ID = "stabilityai/stable-video-diffusion-img2vid-xt"
MIN_CARD_BYTES, MAX_CARD_BYTES = 2**30, 2**40


def plan(arguments: argparse.Namespace) -> dict[str, Any]:
    """Plans what the flags say; as plain values.

    Raises:
        InvalidArgument: a flag is out of its range.
        FailedPrecondition: no card was named, and there is none; or the budget is larger than the card.
    """
    for name, (low, high) in _LIMITS.items():
        value = getattr(arguments, name)
        if not low <= value <= high:
            raise InvalidArgument(f"{name} is {value}; it must be between {low} and {high}.")
        if name in ("width", "height") and value % 8:
            raise InvalidArgument(f"{name} is {value}; it must be a multiple of 8.")
    card, total_bytes, other_bytes = _card(arguments.gpu)
    room = Room(total_bytes, other_bytes, 0, parse_budget(arguments.budget).of(total_bytes))
    dtype, profile = _DTYPES[arguments.precision], Profile(arguments.profile)
    if arguments.precision == "auto" and profile is Profile.QUALITY:
        full = _choose(arguments, card, "float32", profile, room)
        if full["plan"]["verdict"] == "PLAN_VERDICT_FITS":
            return full
    return _choose(arguments, card, dtype, profile, room)


def _choose(arguments: argparse.Namespace, card: str, dtype: str, profile: Profile, room: Room) -> dict[str, Any]:
    coefficients = load(card, _MODEL_ID, dtype)
    planner = Planner(Estimate(Architecture.from_json(shipped_architecture()), coefficients, dtype))
    wish = Wish(
        width_px=arguments.width,
        height_px=arguments.height,
        frame_count=arguments.frames,
        step_count=arguments.steps,
        guided=True,
        drawn=not arguments.image,
        decode_chunk_frame_count=None,
        levers=None,
        profile=profile,
        segment_frame_count=CLIP_FRAME_COUNT,
    )
    choice, variants = planner.choose(wish, room, coefficients.context_bytes)
    return {
        "card": card,
        "card_bytes": room.total_bytes,
        "model": _MODEL_ID,
        "dtype": dtype,
        "measured_on": coefficients.card,
        "width_px": wish.width_px,
        "height_px": wish.height_px,
        "frame_count": wish.frame_count,
        "segments": segment_frame_counts(wish.frame_count, CLIP_FRAME_COUNT),
        "plan": _dict(choice.plan.message()),
        "levers": _dict(choice.levers.message()),
        "variants": [
            {
                "width_px": each.wish.width_px,
                "height_px": each.wish.height_px,
                "segment_frame_count": each.wish.shape.frame_count,
                "profile": each.wish.profile.value,
                "levers": _dict(each.levers.message()),
                "plan": _dict(each.plan.message()),
            }
            for each in variants
        ],
    }


def _dict(message: Any) -> dict[str, Any]:
    found: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return found


def _card(asked: str) -> tuple[str, int, int]:
    """The card's name, its bytes, and what others hold of it: an imagined one, or the first of this machine."""
    if asked:
        size = parse_bytes(asked)
        if not MIN_CARD_BYTES <= size <= MAX_CARD_BYTES:
            raise InvalidArgument(f"gpu is {asked!r}; it must be between 1GiB and 1TiB.")
        return f"a card of {asked}", size, 0
    from halfreel_runtime.device import find_device

    device = find_device("auto")
    if device.kind != "cuda":
        raise FailedPrecondition("this machine has no GPU that torch can use; name a card with --gpu 24GiB.")
    from halfreel_runtime.nvml import Gpu

    memory = Gpu(device.gpu_uuid).memory()
    if memory is None:
        raise FailedPrecondition("the driver does not tell the GPU's memory; name it with --gpu 24GiB.")
    return device.name, memory.total, device.used_at_start_bytes


def parser() -> argparse.ArgumentParser:
    """The flags."""
    made = argparse.ArgumentParser(prog="python -m halfreel_video.plan", description=__doc__)
    made.add_argument("--gpu", default="", help="card to plan for, such as 24GiB; default: this machine's")
    made.add_argument(
        "--budget", default="none", help="budget of the server on it: 12GiB, 80% or none".replace("%", "%%")
    )
    for name, value in DEFAULTS.items():
        made.add_argument(f"--{name}", type=int, default=value)
    made.add_argument("--profile", choices=[each.value for each in Profile], default="auto")
    made.add_argument("--precision", choices=list(_DTYPES), default="auto")
    made.add_argument("--image", action="store_true", help="the first picture is given, not drawn")
    made.add_argument("--json", action="store_true")
    return made


def main(argv: list[str]) -> int:
    """Prints the plan as one JSON object, or in a few lines for people; returns the exit code."""
    arguments = parser().parse_args(argv)
    try:
        found = plan(arguments)
    except HalfreelError as error:
        sys.stderr.write(f"{error.message}\n")
        return 2
    if arguments.json:
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        for phase in found["plan"]["phases"]:
            sys.stdout.write(f"{phase['phase']:<10}{int(phase['peak_reserved_bytes']) / 2**30:8.2f} GiB\n")
        sys.stdout.write(f"{found['plan']['verdict'].removeprefix('PLAN_VERDICT_').lower()}\n")
    return 0 if found["plan"]["verdict"] != "PLAN_VERDICT_REFUSED" else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
