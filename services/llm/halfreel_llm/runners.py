"""Which runner a network gets on its device, and the cache that belongs to it.

Knows no reply.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from halfreel_llm.eager_runner import EagerRunner
from halfreel_llm.graph_runner import PIECE_TOKENS, GraphRunner
from halfreel_llm.kv_cache import KvCache
from halfreel_llm.network import Network

_logger = logging.getLogger(__name__)
# The graphs' filling rows have a slot of their own, which no reply gets.
SPARE_SLOT_COUNT = 1
# A step of ChatGLM3-6B then has 40 MiB of its own instead of 150.
_SMALL_PIECE_TOKENS = 256


def make_runner(
    network: Network,
    allowed: Tensor,
    *,
    slot_count: int,
    context_token_count: int,
    small_pieces: bool = False,
) -> tuple[EagerRunner | GraphRunner, KvCache]:
    """Makes the fastest runner that this device and network allow; the reason is logged where that is not the graphs'.

    Args:
        network: With its weights on its device.
        allowed: Which tokens may ever be picked, [vocabulary], bool.
        slot_count: Replies that can be written at once.
        context_token_count: Tokens that prompt and reply may have together.
        small_pieces: Whether graphs read a prompt in small pieces, for they hold less memory then.
    """
    refused = _no_graphs(network)
    count = slot_count if refused else slot_count + SPARE_SLOT_COUNT
    cache = KvCache(network.shape, count, context_token_count, device=network.device, dtype=network.dtype)
    if refused:
        if network.device.type == "cuda":
            _logger.warning("no_cuda_graphs", extra={"reason": refused})
        return EagerRunner(network, cache, allowed.to(network.device)), cache
    from halfreel_llm import kernels
    from halfreel_llm.fused_network import FusedNetwork

    properties = torch.cuda.get_device_properties(network.device)
    fused = FusedNetwork(network, kernels)
    runner = GraphRunner(
        fused,
        cache,
        allowed,
        kernels,
        graphs=True,
        processor_count=properties.multi_processor_count,
        piece_tokens=_SMALL_PIECE_TOKENS if small_pieces else PIECE_TOKENS,
    )
    runner.capture()
    return runner, cache


def spare_slot_count(network: Network) -> int:
    """Returns how many slots the cache of this network's runner has beside those of replies."""
    return 0 if _no_graphs(network) else SPARE_SLOT_COUNT


def _no_graphs(network: Network) -> str:
    """Returns why this network can't run in graphs here; empty where it can."""
    if network.device.type != "cuda":
        return "no GPU"
    if network.dtype not in (torch.float16, torch.bfloat16):
        return f"the arithmetic is {network.dtype}; the kernels are for 16 bits"
    size = network.shape.head_size
    if not network.silu or size & (size - 1) or network.shape.rotary_size & (network.shape.rotary_size - 1):
        return "the kernels are for SiLU and head sizes that are powers of two"
    try:
        from halfreel_llm import kernels

        row = torch.ones((1, network.shape.hidden_size), device=network.device, dtype=network.dtype)
        kernels.normed(row, network.final_norm, 1e-5)
    except Exception as error:  # Triton is absent, or has no C compiler to build its launcher with
        return f"Triton can't compile kernels here: {type(error).__name__}: {error}"
    return ""
