"""Blocks of the UNet and of the VAE's decoder as compiled code: the same numbers up to rounding, in fewer kernels.

They are compiled one by one, in moments that the engine has free, on pictures so small that they take hardly any
memory; clips run the blocks as they are until all are ready. What is compiled holds for clips of every size: sizes are
variables in it. It is held against the uncompiled blocks before it is used. Whatever else a block is given later (one
frame alone, say, or other arithmetic) runs as it is: nothing is ever compiled while a clip waits.

Between two blocks everything is as before: weights may move, and a job may stop. Used by the engine's thread alone, but
for `ready` and `problem`. Knows nothing of clips.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from halfreel_runtime.failures import release_frames
from halfreel_video.convolutions import Temporal, take_over_convolutions
from halfreel_video.lean_unet import make_lean
from halfreel_video.streaming import unet_blocks

# Latent cells, at the lowest level of the UNet, and frames of what is compiled on. All sizes differ at every level, so
# that none is taken for another's, and none is 1, which would become a constant.
_HEIGHT, _WIDTH, _FRAME_COUNT = 5, 7, 3
# Of the length of what an uncompiled model gives, how far what the compiled one gives may be from it.
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 0.3}
# Blocks that share code count as versions of it: 15 shapes of resnets, with and without guidance.
_VERSION_LIMIT = 256
# What was not compiled yet for some arguments runs as it is.
_NO_COMPILER, _COMPILER = "eager_on_recompile", "default"
_logger = logging.getLogger(__name__)


class Region:
    """One callable of a block, which runs as it is or compiled."""

    def __init__(self, owner: Any, name: str, backend: str) -> None:
        """Stands in for the callable of this name."""
        self._plain = getattr(owner, name)
        self._compiled: Any = None  # the compiler takes a second to import: not before it is wanted
        self._backend = backend
        self.is_on = False
        self.stance = _NO_COMPILER
        setattr(owner, name, self)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Runs it."""
        if not self.is_on:
            return self._plain(*arguments, **named)
        if self._compiled is None:
            self._compiled = torch.compile(self._plain, dynamic=True, fullgraph=True, backend=self._backend)
        with torch.compiler.set_stance(self.stance):
            return self._compiled(*arguments, **named)


@dataclass(frozen=True)
class _Sample:
    """A small piece of work, and the regions that it passes, in order."""

    run: Callable[[], torch.Tensor]
    regions: Sequence[Region]


class CompiledBlocks:
    """The blocks of one pipeline."""

    def __init__(self, svd: Any, *, temporal: Temporal = "picture", backend: str = "inductor") -> None:
        """Takes over the blocks; nothing is compiled yet.

        Args:
            svd: the StableVideoDiffusionPipeline; its UNet is made lean.
            temporal: as `take_over_convolutions` has it.
            backend: of torch.compile; another than its own traces alone, which takes seconds where that takes minutes.
        """
        make_lean(svd.unet)
        self._svd = svd
        decoder = svd.vae.decoder
        take_over_convolutions(svd.unet, temporal)
        take_over_convolutions(decoder, temporal)
        # What a transformer does once a clip is not compiled: the rest of it is its body.
        blocks = unet_blocks(svd.unet)
        self._unet = [Region(block, "body" if hasattr(block, "body") else "forward", backend) for block in blocks]
        self._decoder = [Region(block, "forward", backend) for block in _decoder_blocks(decoder)]
        self._pieces: Iterator[None] | None = self._compile()
        self.ready = False
        self.problem = ""

    @property
    def is_pending(self) -> bool:
        """Whether there is anything left to compile."""
        return self._pieces is not None

    def use(self, wanted: bool) -> bool:
        """Has the blocks run compiled from now on, or as they are; returns which: what is not ready runs as it is."""
        wanted = wanted and self.ready
        self._switch(*(self._unet + self._decoder if wanted else ()))
        return wanted

    def compile_next(self) -> None:
        """Compiles one block more; both models must be on the device. Leaves all blocks as they are.

        Where one can't be compiled, or gives other numbers, none ever runs compiled; `problem` says why.
        """
        if self._pieces is None:
            return
        try:
            next(self._pieces)
            return
        except StopIteration:
            self.ready = True
        except Exception as error:  # a compiler raises whatever it likes
            release_frames(error)
            lines = str(error).strip().splitlines()
            self.problem = f"{type(error).__name__}: {lines[0] if lines else ''}"
            _logger.warning("not_compiled", extra={"reason": self.problem})
        finally:
            self._switch()
        self._pieces = None

    def compile_all(self) -> bool:
        """Compiles all that is left; returns whether it is ready."""
        while self.is_pending:
            self.compile_next()
        return self.ready

    def _compile(self) -> Iterator[None]:
        for sample in self._samples():
            expected = _numbers(sample.run)
            for count in range(1, len(sample.regions) + 1):
                # Those before run compiled as well: what they give lies in memory otherwise, and is compiled for.
                self._switch(*sample.regions[:count], stance=_COMPILER)
                with _compiling():
                    given = _numbers(sample.run)
                self._switch()
                yield
            distance = (given - expected).norm() / expected.norm()
            limit = _TOLERANCE[self._svd.unet.dtype]
            if not distance <= limit:
                raise ArithmeticError(f"compiled blocks are off by {distance:.3g} of their length; {limit} is allowed")

    def _switch(self, *on: Region, stance: str = _NO_COMPILER) -> None:
        for region in (*self._unet, *self._decoder):
            region.is_on, region.stance = region in on, stance

    def _samples(self) -> Iterator[_Sample]:
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

            yield _Sample(denoise, self._unet)

        def decode() -> torch.Tensor:
            latents = _drawer(vae)(_FRAME_COUNT, vae.config.latent_channels, _HEIGHT, _WIDTH)
            result: torch.Tensor = vae.decode(latents, num_frames=_FRAME_COUNT).sample
            return result

        yield _Sample(decode, self._decoder)


def _decoder_blocks(decoder: Any) -> list[Any]:
    """The resnets and upsamplers of a TemporalDecoder, in the order they run."""
    blocks = list(decoder.mid_block.resnets)
    for block in decoder.up_blocks:
        blocks += [*block.resnets, *(block.upsamplers or ())]
    return blocks


@torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not typed to mypy
def _numbers(run: Callable[[], torch.Tensor]) -> torch.Tensor:
    return run().float()


def _drawer(module: Any) -> Callable[..., torch.Tensor]:
    """Draws the same numbers for each run, of a module's own arithmetic."""
    draws = torch.Generator("cpu").manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=draws).to(module.device, module.dtype)


@contextmanager
def _compiling() -> Iterator[None]:
    """Lets the compiler work, which it is kept from otherwise."""
    from torch._dynamo import config as tracing
    from torch._inductor import config as generating
    from torch.fx.experimental import _config as sizes

    # Deterministic: kernels are chosen by rule and not by a stopwatch, so that a restart gives the same bytes.
    with (
        tracing.patch(recompile_limit=_VERSION_LIMIT, accumulated_recompile_limit=4 * _VERSION_LIMIT),
        generating.patch(deterministic=True) if hasattr(generating, "deterministic") else generating.patch({}),
        sizes.patch(use_duck_shape=False),
    ):
        yield
