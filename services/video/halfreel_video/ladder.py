"""What is given up, step by step, when memory runs out in the middle of a clip; nothing is denoised twice.

Knows what each rung frees; the job asks for the next one and does the failed piece of work again.
"""

from __future__ import annotations

from halfreel_video.layout import IMAGE_ENCODER, KEYFRAME, UNET, VAE, Layout
from halfreel_video.levers import Levers


class Ladder:
    """The rungs of one clip; `rungs` names those taken, in order.

    What decoding gives up beside the chunk is given up for one segment: the next one's denoising needs the UNet again.
    """

    def __init__(self, layout: Layout, levers: Levers) -> None:
        """Begins at the top: nothing is given up."""
        self.rungs: list[str] = []
        self.decode_chunk_frame_count = levers.decode_chunk_frame_count
        self._layout = layout
        self._decode_rest: list[str] = []

    def offload(self) -> bool:
        """Before denoising: idle parts leave the device. Tells whether there was anything to give up."""
        levers = self._layout.levers
        if levers.offload_idle_parts:
            return False
        self._take(levers, Levers(**{**vars(levers), "offload_idle_parts": True}))
        return True

    def save_denoising(self) -> bool:
        """In denoising: every lever that saves, once. Tells whether any was left."""
        levers = self._layout.levers
        saving = levers.with_saving()
        if saving == levers or self._layout.changed:  # weights in another arithmetic can't be streamed from home
            return False
        self._take(levers, saving)
        return True

    def begin_decoding(self) -> None:
        """A segment is decoded from here on: the chunk stays as it is, the rungs below it are there anew."""
        self._decode_rest = ["unet_off", "decode_on_cpu"]

    def lower_decode(self) -> bool:
        """In decoding: fewer frames at once, down to one; then the VAE alone on the device; then the CPU."""
        if self.decode_chunk_frame_count > 1:
            self.decode_chunk_frame_count //= 2
            self.rungs.append(f"decode_chunk_{self.decode_chunk_frame_count}")
            self._layout.release_cached()
            return True
        while self._decode_rest:
            rung = self._decode_rest.pop(0)
            if rung == "decode_on_cpu":
                self._layout.to_cpu(VAE)
            elif others := [name for name in (UNET, IMAGE_ENCODER, KEYFRAME) if self._layout.is_here(name)]:
                self._layout.park(*others)
            else:  # it would free nothing
                continue
            self.rungs.append(rung)
            return True
        return False

    def _take(self, before: Levers, after: Levers) -> None:
        self.rungs += [name if value == "true" else f"{name}_{value}" for name, value in before.differences(after)]
        self._layout.arrange(after)
