"""Whether a pipeline's blocks run in fewer passes over memory or as diffusers has them, clip by clip.

They are held against diffusers' blocks before a clip is rendered by them, piece by piece, in moments that the engine
has free; that also compiles their kernels. Whatever is wrong with them on this device, clips run as before.
Used by the engine's thread alone, but for `ready` and `problem`. Knows nothing of clips.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch

from halfreel_runtime.failures import release_frames
from halfreel_video.fused import Swap, decoder_swaps, unet_swaps
from halfreel_video.lean_unet import make_lean

# Latent cells, at the lowest level of the UNet, and frames of what they are tried on.
_HEIGHT, _WIDTH, _FRAME_COUNT = 5, 7, 3
# Of the length of what diffusers' blocks give, how far what these give may be from it.
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 0.3}
_logger = logging.getLogger(__name__)


class FusedBlocks:
    """The blocks of one pipeline."""

    def __init__(self, svd: Any, find_kernels: Callable[[], Any]) -> None:
        """Nothing is prepared before it is tried; blocks run as they are.

        Args:
            svd: the StableVideoDiffusionPipeline; its UNet is made lean.
            find_kernels: gives `fused_kernels` or `fused_plain`; may raise, where there are none for this device.
        """
        self._svd = svd
        self._find_kernels = find_kernels
        self._swaps: list[tuple[Swap, Any]] = []
        make_lean(svd.unet)
        self._pieces: Iterator[None] | None = self._check()
        self.ready = False
        self.problem = ""

    @property
    def is_pending(self) -> bool:
        """Whether there is anything left to be tried."""
        return self._pieces is not None

    def use(self, wanted: bool) -> bool:
        """Has the blocks run fused from now on, or as they are; returns which: what was not tried runs as it is."""
        wanted = wanted and self.ready
        self._switch(wanted)
        return wanted

    def check_next(self) -> None:
        """Tries one piece more; both models must be on the device. Leaves all blocks as they are.

        Where one fails or gives other numbers, none ever runs fused; `problem` says why.

        Raises:
            torch.OutOfMemoryError: there was no room; all is to be tried again.
        """
        if self._pieces is None:
            return
        try:
            next(self._pieces)
            return
        except StopIteration:
            self.ready = True
        except torch.OutOfMemoryError:  # there may be room another time
            self._switch(False)
            self._pieces = self._check()
            raise
        except Exception as error:  # a compiler raises whatever it likes
            release_frames(error)
            lines = str(error).strip().splitlines()
            self.problem = f"{type(error).__name__}: {lines[0] if lines else ''}"
            _logger.warning("not_fused", extra={"reason": self.problem})
        finally:
            self._switch(False)
        self._pieces = None

    def check_all(self) -> bool:
        """Tries all that is left; returns whether it is ready."""
        while self.is_pending:
            self.check_next()
        return self.ready

    def _switch(self, fused: bool) -> None:
        for swap, plain in self._swaps:
            if fused:
                swap.put()
            elif plain is not None:
                setattr(swap.owner, swap.name, plain)
            else:  # its class's own
                vars(swap.owner).pop(swap.name, None)

    def _check(self) -> Iterator[None]:
        limit, kernels = _TOLERANCE[self._svd.unet.dtype], self._find_kernels()
        # By the products, decoding 25 frames took 0.57 s on an H200, and 0.64 by the pictures; steps were even.
        swaps = unet_swaps(self._svd.unet, kernels, temporal="product")
        swaps += decoder_swaps(self._svd.vae.decoder, kernels, temporal="product")
        self._swaps = [(swap, vars(swap.owner).get(swap.name)) for swap in swaps]
        for run in self._samples():
            expected = _numbers(run)
            self._switch(True)
            given = _numbers(run)
            self._switch(False)
            distance = (given - expected).norm() / expected.norm()
            if not distance <= limit:
                raise ArithmeticError(f"fused blocks are off by {distance:.3g} of their length; {limit} is allowed")
            yield

    def _samples(self) -> Iterator[Callable[[], torch.Tensor]]:
        unet, vae = self._svd.unet, self._svd.vae
        scale = 2 ** (len(unet.config.down_block_types) - 1)
        for half_count in (2, 1):  # with guidance, and without

            def denoise(halves: int = half_count) -> torch.Tensor:
                draw = _drawer(unet)
                (noise,) = unet(
                    draw(halves, _FRAME_COUNT, unet.config.in_channels, scale * _HEIGHT, scale * _WIDTH),
                    draw().abs(),
                    encoder_hidden_states=draw(halves, 1, unet.config.cross_attention_dim),
                    added_time_ids=draw(halves, 3).abs() * 100,
                    return_dict=False,
                )
                result: torch.Tensor = noise
                return result

            yield denoise

        def decode() -> torch.Tensor:
            latents = _drawer(vae)(_FRAME_COUNT, vae.config.latent_channels, _HEIGHT, _WIDTH)
            result: torch.Tensor = vae.decode(latents, num_frames=_FRAME_COUNT).sample
            return result

        yield decode


@torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not typed to mypy
def _numbers(run: Callable[[], torch.Tensor]) -> torch.Tensor:
    return run().float()


def _drawer(module: Any) -> Callable[..., torch.Tensor]:
    """Draws the same numbers for each run, of a module's own arithmetic."""
    draws = torch.Generator("cpu").manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=draws).to(module.device, module.dtype)
