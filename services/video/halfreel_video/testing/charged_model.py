"""SVD-XT on a simulated card, drawn by a small model: what a request asks for is planned, admitted and charged.

Knows no server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias, cast

import torch

from halfreel.video.v1 import video_pb2
from halfreel_runtime.cancel import CancelToken
from halfreel_runtime.memory import MemoryMonitor
from halfreel_runtime.memory_limit import MemoryLimit
from halfreel_runtime.plan import Profile
from halfreel_runtime.sleeper import Sleeper
from halfreel_runtime.testing.allocator import SimulatedAllocator
from halfreel_runtime.testing.source import SimulatedSource, simulated_device
from halfreel_video.admission import Admission, predictions
from halfreel_video.architecture import Architecture
from halfreel_video.clip import ClipRequest
from halfreel_video.coefficients import shipped, shipped_architecture
from halfreel_video.estimate import Estimate
from halfreel_video.events import Event
from halfreel_video.job import ClipJob
from halfreel_video.limits import Limits
from halfreel_video.model import ClipDefaults, VideoModel
from halfreel_video.planner import Choice
from halfreel_video.settings import VideoSettings
from halfreel_video.sleeping import SleepingVideo
from halfreel_video.testing.charged_layout import ChargedLayout

Steps: TypeAlias = Callable[[CancelToken], Iterator[Event]]
_SIDE_PX = 32  # of what is really drawn
_DTYPE = "float16"


@dataclass(frozen=True)
class ChargedVideo:
    """The video server's parts on one card, without a server around them.

    Attributes:
        model: the small one, that says it is SVD-XT in FP16.
        memory: of the card.
        admission: as a server's.
        sleeper: without turns.
        allocator: of the process.
    """

    model: VideoModel
    memory: MemoryMonitor
    admission: Admission
    sleeper: Sleeper
    allocator: SimulatedAllocator
    limits: Limits

    @classmethod
    def of(
        cls,
        small: VideoModel,
        allocator: SimulatedAllocator,
        memory: MemoryMonitor | None = None,
        sleeper: Sleeper | None = None,
    ) -> ChargedVideo:
        """Puts a model that was loaded for this alone on a card.

        Args:
            small: on the CPU, in FP32.
            allocator: of the process on the card.
            memory: that reads the allocator; None makes one.
            sleeper: of a server that takes turns; None for one that has the card alone.
        """
        architecture = Architecture.from_json(shipped_architecture())
        estimate = Estimate(architecture, shipped(_DTYPE), _DTYPE)
        device, capacity = simulated_device(), allocator.card.capacity_bytes
        memory = memory or MemoryMonitor(device, source=SimulatedSource(allocator))
        defaults = ClipDefaults(1024, 576, 25, 25, 7, 127, 3.0)
        model = replace(
            small,
            device=device,
            dtype=getattr(torch, _DTYPE),
            clip_frame_count=25,
            defaults=defaults,
            layout=ChargedLayout(small.svd, small.keyframe, allocator, estimate),
            architecture=architecture,
        )
        limits, limit = Limits.of(VideoSettings.model_construct(), defaults), MemoryLimit(device, capacity, 0, 0)
        sleeper = sleeper or Sleeper(memory)
        admission = Admission(model, limits, memory, limit, Profile.AUTO, sleeper)
        return cls(model, memory, admission, sleeper, allocator, limits)

    @property
    def layout(self) -> ChargedLayout:
        """Where the parts are."""
        return cast(ChargedLayout, self.model.layout)

    @property
    def sleeping(self) -> SleepingVideo:
        """The model as something that can sleep."""
        return SleepingVideo(self.model)

    @property
    def leaked_bytes(self) -> int:
        """What the allocator holds live and no weight is."""
        return self.allocator.live.allocated - self.layout.held_bytes()

    def admit(self, request: video_pb2.GenerateRequest) -> Choice:
        """Lets a request in, or in a cheaper form where it allows that.

        Raises:
            PlanRefused: it does not fit.
        """
        self.limits.check(request)
        return self.admission.admit(request)[0]

    def steps(self, request: video_pb2.GenerateRequest, choice: Choice) -> Steps:
        """The work on a clip as it was admitted, of the same frames and steps, drawn in a corner of its size."""
        clip = self.limits.clip(request, choice, request.request_id or "charged", None)
        return self.steps_of(clip, predictions(choice, self.model))

    def steps_of(self, clip: ClipRequest, predicted_bytes: dict[str, int] | None = None) -> Steps:
        """The work on a clip, whoever let it in; in the engine's thread, as a job's."""
        small = replace(clip, width_px=_SIDE_PX, height_px=_SIDE_PX)
        job = ClipJob(self.model, small, self.memory, predicted_bytes)

        def steps(token: CancelToken) -> Iterator[Event]:
            self.layout.shape = replace(
                self.layout.shape,
                width_px=clip.width_px,
                height_px=clip.height_px,
                guided=clip.guidance_scale > 1,
                drawn=clip.image is None,
            )
            yield from job.steps(token)

        return steps
