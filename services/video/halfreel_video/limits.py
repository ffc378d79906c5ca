"""The one table of what a request may ask for, and the check of a request against it.

Knows the request's message; knows nothing of loaded models but their defaults.
"""

from __future__ import annotations

import re
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from halfreel.gpu.v1 import gpu_pb2
from halfreel.video.v1 import video_pb2
from halfreel_runtime.checks import Checks
from halfreel_runtime.errors import FailedPrecondition, InvalidArgument
from halfreel_runtime.plan import Profile
from halfreel_video.clip import ClipRequest
from halfreel_video.levers import Levers
from halfreel_video.model import ClipDefaults
from halfreel_video.planner import Choice, Wish
from halfreel_video.settings import VideoSettings
from halfreel_video.trades import REUSE_FEATURES, check_trades

MAX_PROMPT_CHARACTERS = 2000
MAX_SEED = 2**63 - 1
MIN_SIDE_PX, MAX_SIDE_PX = 64, 2048
MIN_CARD_BYTES, MAX_CARD_BYTES = 2**30, 2**40
_REQUEST_ID = re.compile(r"[\x21-\x7e]{0,128}")


@dataclass(frozen=True)
class Limit:
    """The range of one numeric field, both ends allowed, and what it must be a multiple of."""

    field: str
    low: float
    high: float
    unit: str = ""
    step: int = 1


@dataclass(frozen=True)
class Limits:
    """What requests to one server may ask for, and what they get where they ask for nothing."""

    table: Sequence[Limit]
    defaults: ClipDefaults

    @classmethod
    def of(
        cls, settings: VideoSettings, defaults: ClipDefaults, *, side_step_px: int = 8, max_frame_count: int = 0
    ) -> Limits:
        """Builds the table from the settings and the model's defaults.

        Args:
            settings: what the server was told.
            defaults: the model's.
            side_step_px: what width and height must be multiples of.
            max_frame_count: of a model whose clips can't be chained; 0 takes the setting alone.

        Raises:
            FailedPrecondition: MODEL_REFUSED; a default of the model is out of its range.
        """
        # Four times its own side is as far as a model can be stretched with any sense.
        max_width_px = settings.max_width_px or min(MAX_SIDE_PX, 4 * defaults.width_px)
        max_height_px = settings.max_height_px or min(MAX_SIDE_PX, 4 * defaults.height_px)
        limits = cls(
            (
                Limit("width_px", MIN_SIDE_PX, max_width_px, "px", side_step_px),
                Limit("height_px", MIN_SIDE_PX, max_height_px, "px", side_step_px),
                Limit("frame_count", 2, min(settings.max_frame_count, max_frame_count or sys.maxsize), "frames"),
                Limit("step_count", 1, 100, "steps"),
                Limit("fps", 1, 60, "frames a second"),
                Limit("motion_bucket", 1, 255),
                Limit("guidance_scale", 1, 20),
                Limit("decode_chunk_frame_count", 1, 200, "frames"),
            ),
            defaults,
        )
        try:
            limits.check(video_pb2.GenerateRequest(prompt="defaults"))
        except InvalidArgument as error:
            raise FailedPrecondition(
                f"a default in the model's halfreel.json is out of range: {error}", reason="MODEL_REFUSED"
            ) from None
        return limits

    def high(self, field: str) -> int:
        """Returns the largest value of a field."""
        return int(next(limit.high for limit in self.table if limit.field == field))

    def check(self, request: video_pb2.GenerateRequest, *, planned: bool = False) -> None:
        """Checks every field of a request but the pixels of its image.

        Args:
            request: what came.
            planned: it is only planned, and needs neither prompt nor image.

        Raises:
            InvalidArgument: INVALID_FIELD; tells every field that is wrong, its value and its limit.
        """
        checks = Checks()
        for limit in self.table:
            value = self.value(request, limit.field)
            if checks.between(limit.field, value, limit.low, limit.high, limit.unit) and limit.step > 1:
                checks.multiple_of(limit.field, int(value), limit.step)
        if request.HasField("seed"):
            checks.between("seed", request.seed, 0, MAX_SEED)
        checks.require(
            _REQUEST_ID.fullmatch(request.request_id) is not None,
            "request_id",
            "is not 1 to 128 visible ASCII characters",
        )
        if request.prompt:
            checks.text("prompt", request.prompt, max_characters=MAX_PROMPT_CHARACTERS)
        elif not planned:
            checks.require(
                bool(request.image), "prompt", "is empty and so is image; the first picture needs one of them"
            )
        checks.require(
            request.profile in gpu_pb2.MemoryProfile.values(),
            "profile",
            f"is {request.profile}; it must be one of {', '.join(gpu_pb2.MemoryProfile.keys())}",
        )
        check_trades(request.trades, checks)
        checks.done()
        if request.HasField("levers"):
            Levers.read(request.levers)

    def check_plan(self, request: video_pb2.PlanMemoryRequest) -> None:
        """Checks a request for a plan.

        Raises:
            InvalidArgument: INVALID_FIELD.
        """
        if request.HasField("card_bytes"):
            checks = Checks()
            checks.between("card_bytes", request.card_bytes, MIN_CARD_BYTES, MAX_CARD_BYTES, "bytes")
            checks.done()
        self.check(request.clip, planned=True)

    def wish(self, request: video_pb2.GenerateRequest, clip_frame_count: int, profile: Profile) -> Wish:
        """What of a checked request decides its memory.

        Args:
            request: what was checked.
            clip_frame_count: the most frames that the model renders at once.
            profile: where the request names none.
        """
        chunk = request.decode_chunk_frame_count if request.HasField("decode_chunk_frame_count") else None
        levers = Levers.read(request.levers) if request.HasField("levers") else None
        return Wish(
            width_px=int(self.value(request, "width_px")),
            height_px=int(self.value(request, "height_px")),
            frame_count=int(self.value(request, "frame_count")),
            step_count=int(self.value(request, "step_count")),
            guided=self.value(request, "guidance_scale") > 1,
            drawn=not request.image,
            decode_chunk_frame_count=chunk,
            levers=levers,
            profile=Profile.of(request.profile, profile),
            segment_frame_count=clip_frame_count,
            keeps_deep=REUSE_FEATURES.name in request.trades,
        )

    def clip(
        self, request: video_pb2.GenerateRequest, choice: Choice, request_id: str, image: Image.Image | None
    ) -> ClipRequest:
        """Makes the clip of an admitted request: defaults filled in, a seed chosen where none is given.

        Args:
            request: what was checked.
            choice: what was admitted.
            request_id: for the log.
            image: the first picture, of the choice's size.
        """
        wish = choice.wish
        return ClipRequest(
            request_id=request_id,
            prompt=request.prompt,
            image=image,
            width_px=wish.width_px,
            height_px=wish.height_px,
            frame_count=wish.frame_count,
            step_count=wish.step_count,
            fps=int(self.value(request, "fps")),
            motion_bucket=int(self.value(request, "motion_bucket")),
            guidance_scale=self.value(request, "guidance_scale"),
            seed=request.seed if request.HasField("seed") else secrets.randbelow(MAX_SEED + 1),
            preview=request.preview,
            levers=choice.levers,
            segment_frame_count=wish.segment_frame_count,
            trades=tuple(request.trades),
            last_frame=request.last_frame,
        )

    def value(self, request: video_pb2.GenerateRequest, field: str) -> float:
        """What a request asks for in a numeric field, or its default."""
        source = request if request.HasField(field) else self.defaults  # type: ignore[arg-type]  # names are of the table
        value: float = getattr(source, field)
        return value
