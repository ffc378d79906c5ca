"""Predicts what each phase of a clip takes of a device, from sizes alone: weights that are there, and work per unit.

Knows no device and no room; `planner` chooses.
"""

from __future__ import annotations

from dataclasses import dataclass

from halfreel_runtime.plan import Phase
from halfreel_video.architecture import Architecture
from halfreel_video.coefficients import FUSED, PLAIN, Coefficients, Line, StepSpeed, lever_key
from halfreel_video.levers import SDPA, SLICED, Levers

LATENT_PX = 8  # pixels of a latent cell's side
_IMAGE_SIDE = 224 * 224 * 3
# What a phase that is held to its plan may take over what is live at once: the pages in which the driver gives memory
# are 20 MiB, so that free pieces between live ones can't be given back whole. Found on an H200.
_DECODE_ROOM, _DENOISE_ROOM = (1.02, 64 * 2**20), (1.03, 128 * 2**20)
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Shape:
    """What of a clip decides its memory and its time.

    Attributes:
        width_px, height_px: of the clip.
        frame_count: frames that are rendered at once, at most.
        segment_count: parts of the clip, each of so many frames.
        step_count: denoising steps of each part.
        guided: whether both halves of guidance are computed.
        drawn: whether the keyframe model draws the first picture.
        keeps_deep: whether what the deep blocks gave is kept for another step.
    """

    width_px: int
    height_px: int
    frame_count: int
    segment_count: int
    step_count: int
    guided: bool
    drawn: bool
    keeps_deep: bool = False

    @property
    def cells_per_frame(self) -> int:
        """Latent cells of one frame."""
        return (self.width_px // LATENT_PX) * (self.height_px // LATENT_PX)

    def cells_at_once(self, levers: Levers) -> int:
        """Latent cells that one pass of the UNet works on."""
        return self.cells_per_frame * self.frame_count * (2 if self.guided and not levers.split_guidance else 1)


class Estimate:
    """Predicts phases for one model in one arithmetic on one card."""

    def __init__(self, architecture: Architecture, coefficients: Coefficients, dtype: str) -> None:
        self.architecture, self.coefficients, self.dtype = architecture, coefficients, dtype
        self._item = ITEM_BYTES[dtype]

    @property
    def item_bytes(self) -> int:
        """Bytes of one number."""
        return self._item

    def image_encode_bytes(self) -> int:
        """What looking at the first picture takes beside the weights."""
        return self.coefficients.image_encode.at(_IMAGE_SIDE * self._item)

    def vae_encode_bytes(self, shape: Shape) -> int:
        """What encoding the first picture takes beside the weights as they are; FP16's may be switched to FP32."""
        given = self.architecture
        item = 4 if given.vae_upcast else self._item
        work = self.coefficients.vae_encode.at(shape.width_px * shape.height_px * given.vae_channels * item)
        return work + given.vae_count * (item - self._item)

    def load(self) -> Phase:
        """All weights on the device."""
        size = self.architecture.count * self._item
        return Phase("load", size, 0, size, None)

    def phases(self, shape: Shape, levers: Levers) -> tuple[Phase, ...]:
        """Every phase of a clip that takes memory of the device."""
        phases = [self._encode(shape, levers), self._denoise(shape, levers), self._decode(shape, levers)]
        return (self._keyframe(shape, levers), *phases) if shape.drawn else tuple(phases)

    # Weights on the device while a part works, beside those that stay there anyway.

    def _resident(self, levers: Levers, working_count: int) -> int:
        if levers.offload_idle_parts:
            return working_count * self._item
        whole = self.architecture
        unet = whole.streamed_count if levers.stream_weights else whole.unet_count
        return (whole.count - whole.unet_count + unet) * self._item

    def _keyframe(self, shape: Shape, levers: Levers) -> Phase:
        given, known = self.architecture, self.coefficients
        width, height = given.keyframe.size_for(shape.width_px, shape.height_px)
        pixels = width * height
        halves = 2 if given.keyframe.guidance_scale > 1 else 1
        unit = halves * pixels / LATENT_PX**2 * given.keyframe_channels * self._item
        activation = known.keyframe.at(unit)
        seconds = known.keyframe_s + self._moved_s(levers, given.keyframe_count)
        return _phase("keyframe", self._resident(levers, given.keyframe_count), activation, seconds)

    def _encode(self, shape: Shape, levers: Levers) -> Phase:
        given, known = self.architecture, self.coefficients
        work, image = self.vae_encode_bytes(shape), self.image_encode_bytes()
        seconds = shape.segment_count * (
            known.encode_s + self._moved_s(levers, given.image_encoder_count + given.vae_count)
        )
        if not levers.offload_idle_parts:
            return _phase("encode", self._resident(levers, 0), max(work, image), seconds)
        # One after the other: the larger of both.
        parts = ((given.image_encoder_count, image), (given.vae_count, work))
        count, activation = max(parts, key=lambda part: part[0] * self._item + part[1])
        return _phase("encode", self._resident(levers, count), activation, seconds)

    def _denoise(self, shape: Shape, levers: Levers) -> Phase:
        given = self.architecture
        count = given.streamed_count if levers.stream_weights else given.unet_count
        line, _ = self._way(shape, levers)
        activation = line.at(shape.cells_at_once(levers) * given.unet_channels * self._item)
        if levers.holds_denoising:
            activation = _with_room(activation, _DENOISE_ROOM)
        if shape.keeps_deep:
            # Of every half of guidance, and twice as wide as the widest blocks of full size.
            cells = shape.cells_per_frame * shape.frame_count * (2 if shape.guided else 1)
            activation += cells * 2 * given.unet_channels * self._item
        moved = 0.0 if levers.stream_weights else self._moved_s(levers, given.unet_count)
        seconds = shape.segment_count * (shape.step_count * self.step_s(shape, levers) + moved)
        return _phase("denoise", self._resident(levers, count), activation, seconds)

    def _decode(self, shape: Shape, levers: Levers) -> Phase:
        given, known = self.architecture, self.coefficients
        frames = min(levers.decode_chunk_frame_count, shape.frame_count)
        pixels = shape.width_px * shape.height_px
        fused = levers.fuses and FUSED in known.decode_s
        lead = f"{FUSED} " if fused else ""
        counts = [int(key.removeprefix(lead)) for key in known.decode if (FUSED in key) == fused]
        line = known.decode[f"{lead}{max(count for count in counts if count <= frames)}"]
        activation = _with_room(line.at(frames * pixels * given.vae_channels * self._item), _DECODE_ROOM)
        decoded_s = shape.frame_count * pixels * known.decode_s[FUSED if fused else PLAIN]
        seconds = shape.segment_count * (decoded_s + self._moved_s(levers, given.vae_count))
        return _phase("decode", self._resident(levers, given.vae_count), activation, seconds)

    def step_s(self, shape: Shape, levers: Levers) -> float:
        """Seconds of one denoising step."""
        _, speed = self._way(shape, levers)
        passes = 2 if shape.guided and levers.split_guidance else 1
        seconds = passes * speed.at(shape.cells_at_once(levers), shape.cells_per_frame)
        if not levers.stream_weights:
            return seconds
        # The copies run beside the arithmetic, and are waited for where they take longer.
        copied = passes * self.architecture.unet_count * self._item / self.coefficients.copy_bytes_s
        return max(seconds, copied)

    def _way(self, shape: Shape, levers: Levers) -> tuple[Line, StepSpeed]:
        """The lines of a way to compute: those measured with as many parts, or with the next fewer."""
        sliced, together = levers.attention_backend == SLICED, shape.guided and not levers.split_guidance
        if levers.fuses and (key := lever_key(1, FUSED, 2 if together else 1)) in self.coefficients.denoise:
            return self.coefficients.denoise[key], self.coefficients.step[key]
        for count in range(levers.feed_forward_chunk_count, 0, -1):
            # While feed-forward layers decide the peak, slices of the attention save nothing, and are not measured.
            for backend in (SLICED, SDPA) if sliced else (SDPA,):
                # One half alone is never dearer for its size than both: where it was not measured, theirs will do.
                for halves in (2,) if together else (1, 2):
                    key = lever_key(count, backend, halves)
                    if key in self.coefficients.denoise:
                        return self.coefficients.denoise[key], self.coefficients.step[key]
        raise KeyError(lever_key(1, SDPA, 2))

    def _moved_s(self, levers: Levers, count: int) -> float:
        """Seconds of bringing a part to the device, where that is needed."""
        return count * self._item / self.coefficients.copy_bytes_s if levers.offload_idle_parts else 0.0


def _with_room(live_bytes: int, room: tuple[float, int]) -> int:
    """What a phase is held to that has so many live bytes beside the weights."""
    ratio, more_bytes = room
    return round(ratio * live_bytes) + more_bytes


def _phase(name: str, resident: int, activation: int, seconds: float) -> Phase:
    return Phase(name, resident, activation, resident + activation, seconds)
