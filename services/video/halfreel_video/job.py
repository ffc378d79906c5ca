"""One clip from request to MP4, as a generator that the engine runs: keyframe, encode, denoise, decode, mux.

Where memory runs out it goes down the ladder, and where numbers are not finite it goes on in more precise arithmetic,
once. Knows nothing of gRPC, queues or other requests.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from halfreel_runtime.cancel import CancelToken
from halfreel_runtime.errors import OutOfMemory
from halfreel_runtime.failures import release_frames
from halfreel_runtime.instruments import Instruments
from halfreel_runtime.memory import MemoryMonitor
from halfreel_runtime.tracing import span
from halfreel_video.clip import ClipRequest, segment_frame_counts
from halfreel_video.events import ClipDone, Event, Preview, Stage, StageStarted, StepDone
from halfreel_video.frame_writer import FrameWriter
from halfreel_video.keyframe import draw_keyframe
from halfreel_video.ladder import Ladder
from halfreel_video.layout import IMAGE_ENCODER, KEYFRAME, UNET, VAE
from halfreel_video.model import VideoModel
from halfreel_video.mp4 import Mp4Writer
from halfreel_video.parallel_decode import decode_chunks
from halfreel_video.phase_cap import PhaseCap
from halfreel_video.picture import encode_picture
from halfreel_video.predictor import Conditioning
from halfreel_video.shortage import is_shortage, shortage_error
from halfreel_video.svd import Denoising, NanDetected, embed, encode
from halfreel_video.trades import REUSE_FEATURES

T = TypeVar("T")


class ClipJob:
    """The work on one clip. Whatever ends it, the model is left as it was found."""

    def __init__(
        self,
        model: VideoModel,
        clip: ClipRequest,
        memory: MemoryMonitor,
        predicted_bytes: Mapping[str, int] | None = None,
        instruments: Instruments | None = None,
    ) -> None:
        """Prepares the work; nothing is computed before `steps`.

        Args:
            model: what renders it.
            clip: what it is to be.
            memory: is told of every phase.
            predicted_bytes: what the clip's plan expects of each phase.
            instruments: count steps, shortages and NaN; None counts them for nobody.
        """
        self._predicted_bytes = predicted_bytes or {}
        self._instruments = instruments or Instruments("video")
        self._at = Stage.KEYFRAME
        self._layout = model.layout
        self._cap = PhaseCap(model.layout.device)
        self._ladder = Ladder(model.layout, clip.levers)
        self._nan_retry_count = 0
        self._model = model
        self._clip = clip
        self._memory = memory
        self._accepted_at = time.monotonic()
        self._segments = segment_frame_counts(clip.frame_count, clip.segment_frame_count)
        self._stage_s: dict[Stage, float] = {}
        self._step_s: list[float] = []
        self._last_frame = b""

    def steps(self, token: CancelToken) -> Iterator[Event]:
        """Does the work, in the engine's thread.

        Args:
            token: looked at before every denoising step and after every block of the models and chunk of frames.

        Yields:
            Events in the order of the work; ClipDone last.

        Raises:
            OutOfMemory: on the last rung; with needed_bytes, where the allocator told them, and free_bytes.
            NanDetected: also in the most precise arithmetic.
            Cancelled, DeadlineExceeded: the token said so.
        """
        started_at = time.monotonic()
        shortage: OutOfMemory | None = None
        with self._memory.request(self._clip.request_id) as usage, self._model.pulse.of(token):
            usage.predict(self._predicted_bytes)
            try:
                levers = self._layout.take(self._clip.levers)
                self._persistent(self._layout.bring_all, self._ladder.offload)
                mp4 = yield from self._render(token)
                if self._layout.is_short_of_replicas:
                    self._ladder.rungs.append("replica_off")
            except Exception as error:
                if not is_shortage(error):
                    raise
                self._instruments.out_of_memory(self._at.value, recovered=False)
                shortage = shortage_error(self._memory, self._model.device, str(error))
                # The failed frames still hold tensors, which would be counted against the next request.
                release_frames(error)
            finally:
                for rung in self._ladder.rungs:
                    self._instruments.rung(rung)
                self._layout.restore()
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
            levers=levers,
            rungs=tuple(self._ladder.rungs),
            nan_retry_count=self._nan_retry_count,
            last_frame=self._last_frame,
        )

    def _render(self, token: CancelToken) -> Generator[Event, None, bytes]:
        """Renders part after part, each from the last frame of the part before, into one MP4."""
        clip = self._clip
        # On the CPU on every device, so that a seed means the same noise everywhere.
        generator = torch.Generator("cpu").manual_seed(clip.seed)
        picture = clip.image
        if picture is None:
            yield self._started(Stage.KEYFRAME, 0)
            with self._stage(Stage.KEYFRAME, KEYFRAME):
                picture = self._persistent(self._keyframe, self._ladder.offload)
        mp4 = Mp4Writer(width_px=clip.width_px, height_px=clip.height_px, fps=clip.fps, frame_count=clip.frame_count)
        with FrameWriter(mp4) as writer:
            for index, frame_count in enumerate(self._segments):
                latents = yield from self._denoise(picture, index, frame_count, generator, token)
                picture = Image.fromarray((yield from self._decode(latents, index, writer, token)))
                # What is left of it: frames are encoded while those that follow are decoded.
                yield self._started(Stage.MUX, index)
            with self._stage(Stage.MUX):
                if clip.last_frame:
                    self._last_frame = encode_picture(picture)
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
        clip, ladder = self._clip, self._ladder
        yield self._started(Stage.ENCODE, index)
        with self._stage(Stage.ENCODE, IMAGE_ENCODER):
            noise = generator.get_state()

            def encode_again() -> Conditioning:
                generator.set_state(noise)  # the same noise, however often
                return self._encode(picture, frame_count, generator)

            conditioning = self._persistent(encode_again, ladder.offload)
        yield self._started(Stage.DENOISE, index)
        with self._stage(Stage.DENOISE, UNET, held=clip.levers.holds_denoising):
            denoising = Denoising(self._model.svd, conditioning, clip, generator)
            began_at = time.monotonic()
            while denoising.done_count < denoising.step_count:
                token.raise_if_cancelled()
                clean = self._persistent(lambda: self._step(denoising), ladder.save_denoising)
                if clean is None:  # the device has just begun
                    continue
                self._step_s.append(time.monotonic() - began_at)
                began_at += self._step_s[-1]
                self._instruments.step(self._step_s[-1])
                yield self._step_done(denoising.step_count * len(self._segments))
                if clip.preview:
                    yield Preview(self._model.colours.jpeg(clean), len(self._step_s))
            self._layout.restore()
        return denoising.latents

    def _keyframe(self) -> Image.Image:
        clip, model = self._clip, self._model

        def draw() -> Image.Image:
            return draw_keyframe(
                model.keyframe, model.keyframe_defaults, clip.prompt, clip.width_px, clip.height_px, clip.seed
            )

        self._layout.use(KEYFRAME)
        try:
            return self._finite(draw, KEYFRAME)
        finally:
            self._layout.restore()

    def _encode(self, picture: Image.Image, frame_count: int, generator: torch.Generator) -> Conditioning:
        svd, layout = self._model.svd, self._layout
        layout.use(IMAGE_ENCODER)
        embeddings = embed(svd, picture, self._clip, layout.device)
        layout.use(VAE)
        return encode(svd, picture, self._clip, frame_count, generator, embeddings)

    def _step(self, denoising: Denoising) -> torch.Tensor | None:
        self._layout.use(UNET)
        denoising.split_guidance = self._layout.levers.split_guidance
        # There are two halves, however many devices. What a trade keeps of a step would be lost with a replica.
        replicas = [] if REUSE_FEATURES.name in self._clip.trades else self._layout.parallel()
        denoising.replica = next(iter(replicas), None)
        return self._finite(denoising.advance, UNET, denoising.use_dtype)

    def _decode(
        self, latents: torch.Tensor, index: int, writer: FrameWriter, token: CancelToken
    ) -> Generator[Event, None, NDArray[np.uint8]]:
        """Decodes one part's latents to the writer, stopping between chunks when nobody waits any more.

        Returns:
            The last frame.
        """
        yield self._started(Stage.DECODE, index)
        svd, ladder, done = self._model.svd, self._ladder, 0
        ladder.begin_decoding()
        with self._stage(Stage.DECODE, VAE, held=True):
            try:
                while done < latents.shape[1]:

                    def decode_next() -> NDArray[np.uint8]:
                        left = latents[:, done:]  # noqa: B023  # called at once
                        self._layout.use(VAE)
                        self._layout.release_cached()  # or a chunk would take more than the first
                        size = ladder.decode_chunk_frame_count
                        return self._finite(lambda: decode_chunks(svd, left, size, self._layout.parallel()), VAE)

                    chunk = self._persistent(decode_next, ladder.lower_decode)
                    # A later part's first frame is the picture it started from, which is there already.
                    for frame in chunk[1 if index and not done else 0 :]:
                        writer.add(frame)
                    done += len(chunk)
                    token.raise_if_cancelled()
            finally:
                self._layout.restore()
            last: NDArray[np.uint8] = chunk[-1]
            return last

    def _persistent(self, work: Callable[[], T], give_up_something: Callable[[], bool]) -> T:
        """Does a piece of work again, a rung down, for as long as memory runs out and there is something to give up."""
        while True:
            try:
                return work()
            except Exception as error:
                if not is_shortage(error):
                    raise
                text = str(error)
                release_frames(error)
            # Out here, where no exception holds the failed work's tensors.
            self._layout.release_cached()
            if self._cap.give_way():  # the plan was too low, and nothing need be given up yet
                continue
            if not give_up_something():
                raise MemoryError(text)
            self._instruments.out_of_memory(self._at.value, recovered=True)

    def _finite(self, work: Callable[[], T], part: str, use_dtype: Callable[[torch.dtype], None] | None = None) -> T:
        """Does a piece of work again in more precise arithmetic, once, where its numbers are not finite."""
        try:
            return work()
        except NanDetected:
            self._instruments.nan()
            if part in self._layout.changed or self._layout.dtype == torch.float32:
                raise
        self._nan_retry_count += 1
        self._cap.lift()  # more precise arithmetic was not planned
        dtype = self._layout.upcast(part)
        if use_dtype is not None:
            use_dtype(dtype)
        return work()

    def _started(self, stage: Stage, index: int) -> StageStarted:
        return StageStarted(stage, index, len(self._segments))

    def _step_done(self, count: int) -> StepDone:
        done = len(self._step_s)
        # The first step may still pay for kernels that the warm-up's size did not need.
        steady = self._step_s[1:] or self._step_s
        return StepDone(done, count, self._step_s[-1], (count - done) * sum(steady) / len(steady))

    @contextmanager
    def _stage(self, stage: Stage, *parts: str, held: bool = False) -> Iterator[None]:
        """Times a stage and tells the memory monitor of it; a stage that comes again is added up.

        Parts that it does not need, and what the stage before has left in the allocator's cache, are gone before it is
        measured, so that its peak is its own; one that is `held` takes no more than its plan, while it can.
        """
        self._at = stage
        began_at = time.monotonic()
        self._layout.clear_for(*parts)
        most_bytes = self._predicted_bytes.get(stage.value, 0) if held else 0
        with span(stage.value), self._memory.phase(stage.value), self._cap.at(most_bytes):
            yield
        self._stage_s[stage] = self._stage_s.get(stage, 0.0) + time.monotonic() - began_at
