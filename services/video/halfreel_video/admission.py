"""Lets a clip in, as it was asked for or in a cheaper form, or refuses it, by its plan against the room there is now.

Knows the request's limits and the device's figures; nothing of how a clip is rendered.
"""

from __future__ import annotations

from dataclasses import replace

from halfreel.gpu.v1 import gpu_pb2
from halfreel.video.v1 import video_pb2
from halfreel_runtime.memory import MemoryMonitor
from halfreel_runtime.memory_limit import MemoryLimit
from halfreel_runtime.plan import PlanRefused, Profile, Room, Verdict
from halfreel_runtime.sleeper import Sleeper
from halfreel_video.coefficients import load
from halfreel_video.estimate import Estimate
from halfreel_video.levers import Levers
from halfreel_video.limits import MAX_CARD_BYTES, Limits
from halfreel_video.model import VideoModel
from halfreel_video.planner import Choice, Planner, Wish

# Of levers, as suggestions call them.
_CODES = {
    "decode_chunk_frame_count": "lower_decode_chunk",
    "split_guidance": "split_guidance",
    "feed_forward_chunk_count": "chunk_feed_forward",
    "attention_backend": "slice_attention",
    "offload_idle_parts": "offload_idle_parts",
    "stream_weights": "stream_weights",
}


class Admission:
    """Plans and admits the clips of one server.

    Args:
        model: what renders them.
        limits: what requests may ask for.
        memory: the device's figures.
        limit: what the server may take of the device.
        profile: where a request names none.
        sleeper: knows what neighbours on the device would give back, and hears what an admitted clip needs.
    """

    def __init__(
        self,
        model: VideoModel,
        limits: Limits,
        memory: MemoryMonitor,
        limit: MemoryLimit,
        profile: Profile,
        sleeper: Sleeper,
    ) -> None:
        self._sleeper = sleeper
        self._model, self._limits, self._memory, self._limit, self._profile = model, limits, memory, limit, profile
        coefficients = load(model.device.name, model.svd_folder.model_id, model.dtype_name)
        self._planner = Planner(Estimate(model.architecture, coefficients, model.dtype_name))
        # On a GPU, until it is measured. On a CPU all of the process counts: the libraries, and whatever else is not
        # the models' own.
        resident_bytes = memory.report().host.process_resident_bytes
        own_bytes = resident_bytes - model.weights.weight_bytes
        self._context_bytes = coefficients.context_bytes if model.device.kind == "cuda" else max(0, own_bytes)

    @property
    def context_bytes(self) -> int:
        """What the driver keeps for the process: kernels are loaded as they are first used, so it grows."""
        return max(self._context_bytes, self._memory.report().devices[0].context_bytes)

    def usual_levers(self) -> Levers:
        """Those of the clip that a request gets which names nothing."""
        choice, variants = self._planner.choose(self.wish(video_pb2.GenerateRequest()), self.room(), self.context_bytes)
        return variants[0].levers if variants else choice.levers

    def suggestions(self) -> list[gpu_pb2.Suggestion]:
        """What would help while memory is short: the levers that a plain clip goes without, and what each saves.

        Part of a memory report, so it reads none.
        """
        wish = replace(self.wish(video_pb2.GenerateRequest()), profile=Profile.BALANCED)
        choice, _ = self._planner.choose(wish, Room(MAX_CARD_BYTES), 0)
        return [
            gpu_pb2.Suggestion(
                code=_CODES[price.lever],
                text=f"Set {price.lever} to {price.value}, or the profile to saver: a clip then takes less.",
                saved_bytes=price.saved_bytes,
            )
            for price in choice.plan.prices
            if price.saved_bytes > 0
        ]

    def admit(self, request: video_pb2.GenerateRequest) -> tuple[Choice, bool]:
        """Plans a checked request.

        Returns:
            What is rendered, and whether it is a cheaper form than was asked for.

        Raises:
            PlanRefused: it does not fit; with what would, in a form that can be applied as it is.
        """
        wish = self.wish(request)
        choice, variants = self._planner.choose(wish, self.room(), self.context_bytes)
        if choice.plan.fits:
            self._expect(choice)
            return choice, False
        if variants and request.allow_cheaper:
            self._expect(variants[0])
            return variants[0], True
        raise _refusal(choice, variants)

    def _expect(self, choice: Choice) -> None:
        alone = choice.plan.verdict is Verdict.FITS_ALONE
        self._sleeper.expect(choice.plan.needed_bytes, alone=alone)

    def plan(self, request: video_pb2.PlanMemoryRequest) -> tuple[Choice, list[Choice]]:
        """Plans a checked request on this card as it is, or on an imagined one that nobody else uses."""
        if request.HasField("card_bytes"):
            return self._planner.choose(self.wish(request.clip), Room(request.card_bytes), self.context_bytes)
        return self._planner.choose(self.wish(request.clip), self.room(), self.context_bytes)

    def room(self) -> Room:
        """What this server may take of its device now; others hold nothing where the driver can't be asked."""
        report = self._memory.report()
        device = report.devices[0]
        other = device.other_processes_bytes
        if self._model.device.kind == "cpu":
            used = report.host.total_bytes - report.host.available_bytes
            other = max(0, used - report.host.process_resident_bytes)
        return self._limit.room(other, sum(each.held_bytes for each in self._sleeper.neighbours()))

    def wish(self, request: video_pb2.GenerateRequest) -> Wish:
        """What a checked request comes to."""
        wish = self._limits.wish(request, self._model.clip_frame_count, self._profile)
        return replace(wish, fused=self._model.layout.fused.ready)


def _refusal(choice: Choice, variants: list[Choice]) -> PlanRefused:
    """The error, with the nearest cheaper form as fields of a request."""
    wish, fields, suggestion = choice.wish, {}, ""
    if variants:
        first = variants[0]
        fields = {
            "suggested_width_px": str(first.wish.width_px),
            "suggested_height_px": str(first.wish.height_px),
            "suggested_profile": first.wish.profile.value,
            "suggested_needed_bytes": str(first.plan.needed_bytes),
        }
        if first.wish.segment_frame_count < wish.segment_frame_count:
            fields["suggested_frame_count"] = str(min(wish.frame_count, first.wish.segment_frame_count))
        frames = first.wish.shape.frame_count
        suggestion = (
            f"{first.wish.width_px}x{first.wish.height_px} px with {frames} frames at once in profile "
            f"{first.wish.profile.value} would fit (set allow_cheaper to take it)"
        )
    what = f"a clip of {wish.width_px}x{wish.height_px} px with {wish.shape.frame_count} frames at once"
    return PlanRefused.of(choice.plan, what=what, suggestion=suggestion, fields=fields)


def predictions(choice: Choice, model: VideoModel) -> dict[str, int]:
    """What a clip's plan expects the allocator to hold in each phase; nothing on a CPU, which has no allocator."""
    return choice.plan.predicted_bytes() if model.device.kind == "cuda" else {}
