"""One clip from request to MP4, as a generator that the engine runs: keyframe, encode, denoise, decode, mux.

Knows nothing of gRPC, queues or other requests.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from halfreel_runtime.cancel import CancelToken
from halfreel_runtime.errors import HalfreelError, OutOfMemory
from halfreel_runtime.failures import engine_error, release_frames
from halfreel_runtime.memory import MemoryMonitor
from halfreel_video.clip import ClipRequest, segment_frame_counts
from halfreel_video.events import ClipDone, Event, Preview, Stage, StageStarted, StepDone
from halfreel_video.keyframe import draw_keyframe
from halfreel_video.model import VideoModel
from halfreel_video.mp4 import Mp4Writer
from halfreel_video.svd import Denoising, decode, encode

_TRIED_TO_ALLOCATE = re.compile(r"tried to allocate ([\d.]+) (bytes|[KMGT]iB)", re.IGNORECASE)
_UNITS = {"bytes": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


class ClipJob:
    """The work on one clip. Whatever ends it, the model is left as it was found."""

    def __init__(self, model: VideoModel, clip: ClipRequest, memory: MemoryMonitor) -> None:
        """Prepares the work; nothing is computed before `steps`."""
        self._model = model
        self._clip = clip
        self._memory = memory
        self._accepted_at = time.monotonic()
        self._segments = segment_frame_counts(clip.frame_count, model.clip_frame_count)
        self._stage_s: dict[Stage, float] = {}
        self._step_s: list[float] = []

    def steps(self, token: CancelToken) -> Iterator[Event]:
        """Does the work, in the engine's thread.

        Args:
            token: looked at before every denoising step and after every block of the models and chunk of frames.

        Yields:
            Events in the order of the work; ClipDone last.

        Raises:
            OutOfMemory: with needed_bytes, where the allocator told them, and free_bytes.
            Internal: NAN_DETECTED.
            Cancelled, DeadlineExceeded: the token said so.
        """
        started_at = time.monotonic()
        shortage: OutOfMemory | None = None
        with self._memory.request(self._clip.request_id) as usage, self._model.pulse.of(token):
            try:
                mp4 = yield from self._render(token)
            except Exception as error:
                if isinstance(error, HalfreelError) or not isinstance(engine_error(error), OutOfMemory):
                    raise
                shortage = self._shortage(str(error))
                # The failed frames still hold tensors, which would be counted against the next request.
                release_frames(error)
        if shortage is not None:
            # Raised out here, where no exception is being handled that would keep those frames as its context.
            if self._model.device.kind == "cuda":
                torch.cuda.empty_cache()
            raise shortage
        yield ClipDone(
            mp4=mp4,
            sha256=hashlib.sha256(mp4).hexdigest(),
            queue_s=started_at - self._accepted_at,
            generate_s=time.monotonic() - started_at,
            stage_s=self._stage_s,
            phase_peaks=usage.phase_peaks,
        )

    def _render(self, token: CancelToken) -> Generator[Event, None, bytes]:
        """Renders part after part, each from the last frame of the part before, into one MP4."""
        clip, model = self._clip, self._model
        # On the CPU on every device, so that a seed means the same noise everywhere.
        generator = torch.Generator("cpu").manual_seed(clip.seed)
        picture = clip.image
        if picture is None:
            yield self._started(Stage.KEYFRAME, 0)
            with self._stage(Stage.KEYFRAME):
                picture = draw_keyframe(
                    model.keyframe,
                    model.keyframe_defaults,
                    clip.prompt,
                    clip.width_px,
                    clip.height_px,
                    clip.seed,
                )
        with Mp4Writer(
            width_px=clip.width_px, height_px=clip.height_px, fps=clip.fps, frame_count=clip.frame_count
        ) as writer:
            for index, frame_count in enumerate(self._segments):
                latents = yield from self._denoise(picture, index, frame_count, generator, token)
                frames = yield from self._decode(latents, index, token)
                yield self._started(Stage.MUX, index)
                with self._stage(Stage.MUX):
                    # A later part's first frame is the picture it started from, which is there already.
                    for frame in frames[1 if index else 0 :]:
                        writer.add(frame)
                    picture = Image.fromarray(frames[-1])
            with self._stage(Stage.MUX):
                return writer.finish()

    def _denoise(
        self,
        picture: Image.Image,
        index: int,
        frame_count: int,
        generator: torch.Generator,
        token: CancelToken,
    ) -> Generator[Event, None, torch.Tensor]:
        """Encodes the picture and denoises one part's latents."""
        clip, svd = self._clip, self._model.svd
        yield self._started(Stage.ENCODE, index)
        with self._stage(Stage.ENCODE):
            conditioning = encode(svd, picture, clip, frame_count, generator)
        yield self._started(Stage.DENOISE, index)
        with self._stage(Stage.DENOISE):
            denoising = Denoising(svd, conditioning, clip, generator)
            for _ in range(denoising.step_count):
                token.raise_if_cancelled()
                began_at = time.monotonic()
                clean = denoising.step()
                self._step_s.append(time.monotonic() - began_at)
                yield self._step_done(denoising.step_count * len(self._segments))
                if clip.preview:
                    jpeg = self._model.colours.jpeg(clean[0, frame_count // 2])
                    yield Preview(jpeg, len(self._step_s))
        return denoising.latents

    def _decode(
        self, latents: torch.Tensor, index: int, token: CancelToken
    ) -> Generator[Event, None, NDArray[np.uint8]]:
        """Decodes one part's latents, stopping between chunks when nobody waits any more."""
        yield self._started(Stage.DECODE, index)
        with self._stage(Stage.DECODE):
            chunks = []
            for chunk in decode(self._model.svd, latents, self._clip.decode_chunk_frame_count):
                chunks.append(chunk)
                token.raise_if_cancelled()
            return np.concatenate(chunks)

    def _started(self, stage: Stage, index: int) -> StageStarted:
        return StageStarted(stage, index, len(self._segments))

    def _step_done(self, count: int) -> StepDone:
        done = len(self._step_s)
        # The first step may still pay for kernels that the warm-up's size did not need.
        steady = self._step_s[1:] or self._step_s
        return StepDone(done, count, self._step_s[-1], (count - done) * sum(steady) / len(steady))

    @contextmanager
    def _stage(self, stage: Stage) -> Iterator[None]:
        """Times a stage and tells the memory monitor of it; a stage that comes again is added up."""
        began_at = time.monotonic()
        with self._memory.phase(stage.value):
            yield
        self._stage_s[stage] = self._stage_s.get(stage, 0.0) + time.monotonic() - began_at

    def _shortage(self, allocator_text: str) -> OutOfMemory:
        """Says how much memory was missing; the needed bytes are known from the allocator's words alone."""
        report = self._memory.report()
        on_gpu = self._model.device.kind == "cuda"
        free_bytes = report.devices[0].device_free_bytes if on_gpu else report.host.available_bytes
        metadata = {"free_bytes": str(free_bytes)}
        needed = ""
        if (match := _TRIED_TO_ALLOCATE.search(allocator_text)) is not None:
            needed_bytes = int(float(match[1]) * _UNITS[match[2].lower()])
            metadata["needed_bytes"] = str(needed_bytes)
            needed = f"{needed_bytes} more bytes were needed and "
        return OutOfMemory(
            f"the clip does not fit in memory: {needed}{free_bytes} are free; ask for a smaller width_px, height_px, "
            "frame_count or decode_chunk_frame_count",
            metadata=metadata,
        )
