"""What a plan must know of the two models: bytes of their parts, and the widths that their tensors scale with.

Read from loaded pipelines, or for a plan without a model from the file that is shipped. Knows nothing of torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from halfreel_video.keyframe_defaults import KeyframeDefaults

SLOT_COUNT = 3  # of streamed weights: one in use, two under way, for small blocks take longer to copy than to run


@dataclass(frozen=True)
class Architecture:
    """Sizes of one image-to-video model and the keyframe model in front of it; counts are of parameters.

    Attributes:
        unet_count, vae_count, image_encoder_count, keyframe_count: parameters of each part.
        block_counts: parameters of the UNet's blocks, in the order in which they run.
        unet_channels, vae_channels: width of the widest tensors of both, in channels.
        keyframe_channels, keyframe_vae_channels: the same of the keyframe model.
        vae_upcast: whether FP16 encodes pictures in FP32.
        keyframe: how first pictures are drawn.
    """

    unet_count: int
    vae_count: int
    image_encoder_count: int
    keyframe_count: int
    block_counts: tuple[int, ...]
    unet_channels: int
    vae_channels: int
    keyframe_channels: int
    keyframe_vae_channels: int
    vae_upcast: bool
    keyframe: KeyframeDefaults

    @classmethod
    def of(cls, svd: Any, keyframe: Any, blocks: Sequence[Any], defaults: KeyframeDefaults) -> Architecture:
        """Reads two pipelines.

        Args:
            svd: the image-to-video pipeline.
            keyframe: the text-to-image pipeline.
            blocks: the UNet's blocks whose weights can be streamed, in the order in which they run.
            defaults: how first pictures are drawn.
        """
        return cls(
            unet_count=_count(svd.unet),
            vae_count=_count(svd.vae),
            image_encoder_count=_count(svd.image_encoder),
            keyframe_count=sum(_count(part) for part in (keyframe.unet, keyframe.vae, keyframe.text_encoder)),
            block_counts=tuple(_count(block) for block in blocks),
            unet_channels=svd.unet.config.block_out_channels[0],
            vae_channels=svd.vae.config.block_out_channels[0],
            keyframe_channels=keyframe.unet.config.block_out_channels[0],
            keyframe_vae_channels=keyframe.vae.config.block_out_channels[0],
            vae_upcast=bool(svd.vae.config.force_upcast),
            keyframe=defaults,
        )

    @classmethod
    def from_json(cls, given: dict[str, Any]) -> Architecture:
        """Reads what `dataclasses.asdict` gave."""
        return cls(
            **{**given, "block_counts": tuple(given["block_counts"]), "keyframe": KeyframeDefaults(**given["keyframe"])}
        )

    @property
    def ring_count(self) -> int:
        """Parameters that the ring of streamed weights has room for: each slot as large as its largest block."""
        slots = min(SLOT_COUNT, len(self.block_counts))
        return sum(max(self.block_counts[slot::slots]) for slot in range(slots))

    @property
    def streamed_count(self) -> int:
        """Parameters of the UNet that are on the device while its weights are streamed."""
        return self.unet_count - sum(self.block_counts) + self.ring_count

    @property
    def count(self) -> int:
        """Parameters of both models."""
        return self.unet_count + self.vae_count + self.image_encoder_count + self.keyframe_count


def _count(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
