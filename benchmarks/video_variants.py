"""Ways to render a clip that change the model's layers: attention kernels, fused blocks, CUDA graphs.

Each changes copies, so that one can be timed after the other. It does not know how they are timed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from memory_card import say
from video_bench import Bench, Taken
from video_profile import tell_profile

from halfreel_video.attention_kernels import SHAPES, ChosenAttention, fastest_kernels, kernel_seconds
from halfreel_video.fused import fuse_decoder, fuse_unet, kernels_for, turn_weights
from halfreel_video.lean_unet import make_lean


def channels_last(module: Any) -> Any:
    """Has the weights of convolutions in the order that their kernels like."""
    for part in module.modules():
        if isinstance(part, torch.nn.Conv2d):
            part.to(memory_format=torch.channels_last)
        elif isinstance(part, torch.nn.Conv3d):
            part.to(memory_format=torch.channels_last_3d)
    return module


def graphed(unet: Any) -> Callable[..., Any]:
    """The UNet's pass as one CUDA graph a choice of halves, where its weights stay; as it is at a clip's first step."""
    captured: dict[Any, Any] = {}

    def run(sample: torch.Tensor, timestep: torch.Tensor, **named: Any) -> Any:
        kept = named["kept"]
        if not kept.values or not sample.is_cuda:  # what is computed once a clip is not there yet
            return unet(sample, timestep, **named)
        key = id(kept)
        if key not in captured:
            inputs = sample.clone(), timestep.clone()
            graph = torch.cuda.CUDAGraph()
            unet(*inputs, **named)
            torch.cuda.synchronize()
            with torch.cuda.graph(graph):
                result = unet(*inputs, **named)
            captured.clear()
            captured[key] = graph, inputs, result, kept
        graph, inputs, result, _ = captured[key]
        inputs[0].copy_(sample)
        inputs[1].copy_(timestep)
        graph.replay()
        return (result[0].clone(),)

    return run


class Graphed(torch.nn.Module):
    """Stands in for a UNet whose pass is replayed."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet, self.config, self.lean = unet, unet.config, unet.lean
        self.add_embedding = unet.add_embedding
        self._run = graphed(unet)

    @property
    def dtype(self) -> torch.dtype:
        """The UNet's arithmetic."""
        return self.unet.dtype

    @property
    def device(self) -> torch.device:
        """Where the UNet is."""
        return next(self.unet.parameters()).device

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """As the UNet's."""
        return self._run(*arguments, **named)


def heavy_variants(bench: Bench, backend: str) -> dict[str, Callable[[], Callable[[Taken], Any] | None]]:
    """What changes layers: each prepares itself when it is called, and gives what renders its clip."""
    pipeline, plain_vae = bench.pipeline, bench.pipeline.vae

    def fresh() -> Any:
        pipeline.vae = plain_vae
        pipeline.unet = copy.deepcopy(bench.unet)
        make_lean(pipeline.unet)
        return pipeline.unet

    found: list[dict[str, str]] = []

    def fastest(unet: Any) -> dict[str, str]:
        if not found:
            dtype = next(unet.parameters()).dtype
            found.append(fastest_kernels(bench.device, dtype) if bench.on_gpu else {"temporal": "math"})
            say(part="attention", kernels=found[0])
        return found[0]

    def attention(unet: Any) -> None:
        unet.set_attn_processor(ChosenAttention(fastest(unet)))

    def fused(temporal: Any) -> tuple[Any, Any]:
        unet, vae = fresh(), copy.deepcopy(plain_vae)
        kernels = kernels_for(bench.device)
        fuse_unet(unet, kernels, temporal=temporal, attention=fastest(unet).get("spatial", ""))
        fuse_decoder(vae.decoder, kernels, temporal=temporal)
        for part in (unet, vae.decoder):
            turn_weights(part)
        say(part="fused", temporal=temporal, kernels=kernels.__name__)
        return unet, vae

    def by_fusing(temporal: Any = "picture", *, graph: bool = False) -> Callable[[Taken], Any]:
        unet, vae = fused(temporal)
        shown = Graphed(unet) if graph else unet

        def render(taken: Taken) -> Any:
            pipeline.vae = vae
            return bench.ours(taken, shown)

        return render

    def profiled() -> None:
        """Renders nothing: lines of the log alone."""
        tell_profile(bench, "exact", fresh(), plain_vae)
        unet, vae = fused("picture")
        tell_profile(bench, "fused", unet, vae)

    def by_attention() -> Callable[[Taken], Any]:
        unet = fresh()
        attention(unet)
        return lambda taken: bench.ours(taken, unet)

    def by_channels_last() -> Callable[[Taken], Any]:
        unet = channels_last(fresh())
        return lambda taken: bench.ours(taken, unet)

    def diffusers_compiled() -> Callable[[Taken], Any]:
        pipeline.vae = copy.deepcopy(plain_vae)
        unet, vae = channels_last(copy.deepcopy(bench.unet)), pipeline.vae
        unet.forward = torch.compile(unet.forward, backend=backend)
        vae.decoder.forward = torch.compile(channels_last(vae.decoder).forward, backend=backend)

        def render(taken: Taken) -> Any:
            pipeline.vae = vae
            return bench.as_it_comes(taken, unet)

        return render

    return {
        "attention": by_attention,
        "channels_last": by_channels_last,
        "fused": by_fusing,
        "fused_product": lambda: by_fusing("product"),
        "fused_graph": lambda: by_fusing(graph=True),
        "profile": profiled,
        "diffusers_compiled": diffusers_compiled,
    }


def tell_kernels(bench: Bench) -> None:
    """Milliseconds of each attention kernel on the classes of shape that the model has."""
    dtype = next(bench.unet.parameters()).dtype
    shapes = SHAPES | {f"spatial_{tokens}": (50, heads, tokens, 64) for heads, tokens in ((10, 2304), (20, 576))}
    for kind, shape in (shapes if bench.on_gpu else {"tiny": (4, 2, 20, 16)}).items():
        seconds = kernel_seconds(bench.device, dtype, shape)
        say(part="kernels", kind=kind, shape=shape, ms={name: round(1000 * each, 3) for name, each in seconds.items()})
