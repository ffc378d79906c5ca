"""What one clip is to be: the checked request, and how a long clip is cut into parts.

Knows nothing of models, devices or gRPC.
"""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from halfreel_video.levers import Levers


@dataclass(frozen=True)
class ClipRequest:
    """One clip to render; every value is checked and final.

    Sizes are in pixels and multiples of 8. `image`, when there is one, is RGB and has the clip's own size; without
    one, the first picture is drawn from `prompt`. `guidance_scale` 1 switches guidance off. At most
    `segment_frame_count` frames are rendered at once. `trades` names what of its quality is given for time.
    `last_frame` asks for the last frame as a picture too.
    """

    request_id: str
    prompt: str
    image: Image.Image | None
    width_px: int
    height_px: int
    frame_count: int
    step_count: int
    fps: int
    motion_bucket: int
    guidance_scale: float
    seed: int
    preview: bool
    levers: Levers
    segment_frame_count: int
    trades: tuple[str, ...] = ()
    last_frame: bool = False


def segment_frame_counts(frame_count: int, clip_frame_count: int) -> tuple[int, ...]:
    """Cuts a clip into parts that the model can render, as even as can be.

    Every part but the first begins with the last frame of the part before, which is then dropped, so n parts of a, b,
    ... frames make a + b + ... - (n - 1) frames. Even parts, because a model renders a two-frame rest badly.

    Args:
        frame_count: frames of the whole clip, at least 2.
        clip_frame_count: the most frames that the model renders at once, at least 2.

    Returns:
        Frames to render in each part, the shared ones included.
    """
    transition_count = frame_count - 1
    part_count = -(-transition_count // (clip_frame_count - 1))
    least, rest = divmod(transition_count, part_count)
    return tuple(least + 1 + (index < rest) for index in range(part_count))
