"""One clip of a text-to-video model from words to MP4, as a generator that the engine runs.

Where numbers are not finite a step is done again in FP32, once. Knows nothing of gRPC, queues or other requests.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import torch
from PIL import Image

from halfreel_runtime.cancel import CancelToken
from halfreel_runtime.errors import OutOfMemory
from halfreel_runtime.failures import release_frames
from halfreel_runtime.instruments import Instruments
from halfreel_runtime.memory import MemoryMonitor
from halfreel_runtime.tracing import span
from halfreel_video.clip import ClipRequest
from halfreel_video.events import ClipDone, Event, Preview, Stage, StageStarted, StepDone
from halfreel_video.frame_writer import FrameWriter
from halfreel_video.mp4 import Mp4Writer
from halfreel_video.picture import encode_picture
from halfreel_video.shortage import is_shortage, shortage_error
from halfreel_video.svd import NanDetected
from halfreel_video.text_model import TextModel
from halfreel_video.wan import WanDenoising, decode, read_words


class TextClipJob:
    """The work on one clip. Whatever ends it, the model is left as it was found."""

    def __init__(
        self, model: TextModel, clip: ClipRequest, memory: MemoryMonitor, instruments: Instruments | None = None
    ) -> None:
        """Prepares the work; nothing is computed before `steps`.

        Args:
            model: what renders it.
            clip: what it is to be.
            memory: is told of every phase.
            instruments: count steps, shortages and NaN; None counts them for nobody.
        """
        self._model, self._clip, self._memory = model, clip, memory
        self._instruments = instruments or Instruments("video")
        self._at = Stage.ENCODE
        self._accepted_at = time.monotonic()
        self._stage_s: dict[Stage, float] = {}
        self._step_s: list[float] = []
        self._nan_retry_count = 0
        self._last_frame = b""

    def steps(self, token: CancelToken) -> Iterator[Event]:
        """Does the work, in the engine's thread.

        Args:
            token: looked at before every denoising step and after every block of the model and four frames.

        Yields:
            Events in the order of the work; ClipDone last.

        Raises:
            OutOfMemory: with needed_bytes, where the allocator told them, and free_bytes.
            NanDetected: also in FP32.
            Cancelled, DeadlineExceeded: the token said so.
        """
        started_at = time.monotonic()
        shortage: OutOfMemory | None = None
        with self._memory.request(self._clip.request_id) as usage, self._model.pulse.of(token):
            try:
                mp4 = yield from self._render(token)
            except Exception as error:
                if not is_shortage(error):
                    raise
                self._instruments.out_of_memory(self._at.value, recovered=False)
                shortage = shortage_error(self._memory, self._model.device, str(error))
                release_frames(error)  # which still hold tensors
            finally:
                if self._nan_retry_count:
                    torch.nn.Module.to(self._model.pipeline.transformer, self._model.dtype)
        if shortage is not None:
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
            levers=self._model.levers,
            nan_retry_count=self._nan_retry_count,
            last_frame=self._last_frame,
        )

    def _render(self, token: CancelToken) -> Generator[Event, None, bytes]:
        clip, pipeline = self._clip, self._model.pipeline
        yield self._started(Stage.ENCODE)
        with self._stage(Stage.ENCODE):
            words = read_words(pipeline, clip)
        yield self._started(Stage.DENOISE)
        with self._stage(Stage.DENOISE):
            # On the CPU on every device, so that a seed means the same noise everywhere.
            generator = torch.Generator("cpu").manual_seed(clip.seed)
            denoising = WanDenoising(pipeline, words, clip, generator)
            for index in range(denoising.step_count):
                token.raise_if_cancelled()
                began_at = time.monotonic()
                clean = self._step(denoising)
                self._step_s.append(time.monotonic() - began_at)
                self._instruments.step(self._step_s[-1])
                yield self._step_done(denoising.step_count)
                if clip.preview:
                    yield Preview(self._model.colours.jpeg(clean), index + 1)
        yield self._started(Stage.DECODE)
        mp4 = Mp4Writer(width_px=clip.width_px, height_px=clip.height_px, fps=clip.fps, frame_count=clip.frame_count)
        with FrameWriter(mp4) as writer:
            with self._stage(Stage.DECODE):
                # The model makes frames by fours; those that nobody asked for are left away.
                wanted = clip.frame_count
                for frames in decode(pipeline, denoising.latents):
                    for frame in frames[:wanted]:
                        writer.add(frame)
                        last = frame
                    wanted = max(0, wanted - len(frames))
                    token.raise_if_cancelled()
            yield self._started(Stage.MUX)
            with self._stage(Stage.MUX):
                if clip.last_frame:
                    self._last_frame = encode_picture(Image.fromarray(last))
                return writer.finish()

    def _step(self, denoising: WanDenoising) -> torch.Tensor:
        """Does a step, again in FP32 where its numbers are not finite, and all that follow as well."""
        try:
            return denoising.step()
        except NanDetected:
            self._instruments.nan()
            if self._nan_retry_count or self._model.dtype == torch.float32:
                raise
        self._nan_retry_count += 1
        # torch's own method: that of diffusers warns, at every call, of parts to be kept in FP32.
        torch.nn.Module.to(self._model.pipeline.transformer, torch.float32)
        denoising.use_dtype(torch.float32)
        return denoising.step()

    def _started(self, stage: Stage) -> StageStarted:
        return StageStarted(stage, 0, 1)

    def _step_done(self, count: int) -> StepDone:
        done = len(self._step_s)
        # The first step may still pay for kernels that the warm-up's size did not need.
        steady = self._step_s[1:] or self._step_s
        return StepDone(done, count, self._step_s[-1], (count - done) * sum(steady) / len(steady))

    @contextmanager
    def _stage(self, stage: Stage) -> Iterator[None]:
        """Times a stage and tells the memory monitor of it."""
        self._at = stage
        began_at = time.monotonic()
        with span(stage.value), self._memory.phase(stage.value):
            yield
        self._stage_s[stage] = time.monotonic() - began_at
