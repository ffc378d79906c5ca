"""The one model of this server, from its folder to ready: found, loaded, warm, and able to read requests.

Knows no gRPC server.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from halfreel_llm.checkpoint import Checkpoint, CheckpointError, find_checkpoint
from halfreel_llm.defaults import Defaults
from halfreel_llm.generation import TextModel
from halfreel_llm.kv_cache import bytes_per_token
from halfreel_llm.network import Network
from halfreel_llm.planning import Planner
from halfreel_llm.precision import choose_dtype
from halfreel_llm.request_reader import RequestReader
from halfreel_llm.runners import SPARE_SLOT_COUNT, spare_slot_count
from halfreel_llm.schema import SchemaCompiler
from halfreel_llm.settings import LlmSettings
from halfreel_llm.tokenizer import open_tokenizer
from halfreel_llm.weights import load_model
from halfreel_runtime.device import Device
from halfreel_runtime.memory import MemoryMonitor
from halfreel_runtime.memory_limit import CONTEXT_BYTES, MemoryLimit

# Eight replies at once share a step for little more than one takes; each further slot is memory that others could use.
_SLOT_COUNT = 8
# Left to the tensors of a step, the graphs and the libraries' workspaces, when slots are made of what is free.
_WORKSPACE_BYTES = 2**30


@dataclass(frozen=True)
class ServedModel:
    """The model with all that belongs to it."""

    checkpoint: Checkpoint
    text_model: TextModel
    reader: RequestReader
    defaults: Defaults
    context_token_count: int
    planner: Planner
    read_anew: Callable[[], Network]
    """Reads the same network once more, onto the device: for one that was dropped while it slept."""


def load_served_model(settings: LlmSettings, device: Device, memory: MemoryMonitor, limit: MemoryLimit) -> ServedModel:
    """Loads and warms the model; its phase is "load".

    Raises:
        CheckpointError: The model isn't here, or this server can't run it.
    """
    checkpoint = find_checkpoint(settings.model)
    context = _context_token_count(settings, checkpoint)
    tokenizer = open_tokenizer(checkpoint)
    dtype = choose_dtype(settings.precision, on_gpu=device.kind == "cuda")

    def read() -> Network:
        target, int8 = torch.device(device.torch_name), settings.precision == "int8"
        # Weights in 8 bits are made one after another out of the file's pages, so that both never lie on the device.
        model = load_model(checkpoint, device=torch.device("cpu") if int8 else target, dtype=dtype)
        return Network(model, context, device=target, int8=int8)  # the weights are the network's now

    with memory.phase("load"):
        network = read()
    slots = settings.slot_count or _fitting_slots(network, context, memory, limit)
    text_model = TextModel(
        network,
        tokenizer,
        memory,
        slot_count=slots,
        context_token_count=context,
        small_pieces=_left_bytes(network, slots, context, memory, limit) < _WORKSPACE_BYTES,
    )
    text_model.warm_up()
    memory.clear()  # what the warm-up's cache held
    defaults = Defaults.of(checkpoint.generation_defaults, context)
    schemas = SchemaCompiler(tokenizer.grammar_tokenizer(checkpoint.config.vocab_size), tokenizer.reply_leads)
    reader = RequestReader(tokenizer, schemas, context_token_count=context, defaults=defaults)
    planner = Planner(
        shape=network.shape,
        number_bytes=network.dtype.itemsize,
        intermediate_size=checkpoint.config.intermediate_size,
        warm_bytes=memory.report().devices[0].reserved_bytes,
        cache_bytes_per_token=text_model.cache_bytes_per_token,
        cache_is_warm=device.kind == "cuda",
        slot_count=slots,
        piece_tokens=text_model.runner.piece_tokens(alone=True, prompts=1),
        limit=limit,
    )
    return ServedModel(checkpoint, text_model, reader, defaults, context, planner, read)


def guessed_bytes(settings: LlmSettings, device: Device) -> int:
    """Returns about what the server will take of its device, by the model's files; 0 where they are not to be had."""
    try:
        checkpoint = find_checkpoint(settings.model)
        context = _context_token_count(settings, checkpoint)
    except CheckpointError:  # loading will say so
        return 0
    config = checkpoint.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    number_bytes = 4 if settings.precision == "fp32" else 2
    token_bytes = 2 * config.num_hidden_layers * heads * size * number_bytes
    spare = SPARE_SLOT_COUNT if device.kind == "cuda" else 0
    cache_bytes = ((settings.slot_count or _SLOT_COUNT) + spare) * context * token_bytes
    # Files are in 16 bits as a rule.
    weight_bytes = checkpoint.stored_bytes * {"fp32": 2.0, "int8": 0.6}.get(settings.precision, 1.0)
    return int(weight_bytes) + cache_bytes + _WORKSPACE_BYTES + CONTEXT_BYTES


def _fitting_slots(network: Network, context: int, memory: MemoryMonitor, limit: MemoryLimit) -> int:
    """Returns as many slots as there is room for beside the weights, within reason."""
    left = _left_bytes(network, 0, context, memory, limit) - _WORKSPACE_BYTES
    return max(1, min(_SLOT_COUNT, left // _slot_bytes(network, context)))


def _left_bytes(network: Network, slots: int, context: int, memory: MemoryMonitor, limit: MemoryLimit) -> int:
    """Returns what there is beside the weights and the slots, the runner's own included."""
    report = memory.report()
    left = limit.allocator_bytes(report) - report.devices[0].reserved_bytes
    return left - (slots + spare_slot_count(network)) * _slot_bytes(network, context)


def _slot_bytes(network: Network, context: int) -> int:
    return context * bytes_per_token(network.shape, network.dtype)


def _context_token_count(settings: LlmSettings, checkpoint: Checkpoint) -> int:
    own: int = checkpoint.config.max_position_embeddings
    asked = settings.context_token_count or own
    if asked > own:
        raise CheckpointError(f"context_token_count is {asked}; model {checkpoint.model_id} can take at most {own}")
    return asked
