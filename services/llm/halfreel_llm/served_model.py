"""The one model of this server, from its folder to ready: found, loaded, warm, and able to read requests.

Knows no gRPC server.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from halfreel_llm.checkpoint import Checkpoint, CheckpointError, find_checkpoint
from halfreel_llm.defaults import Defaults
from halfreel_llm.generation import TextModel
from halfreel_llm.network import Network
from halfreel_llm.precision import choose_dtype
from halfreel_llm.request_reader import RequestReader
from halfreel_llm.schema import SchemaCompiler
from halfreel_llm.settings import LlmSettings
from halfreel_llm.tokenizer import open_tokenizer
from halfreel_llm.weights import load_model
from halfreel_runtime.device import Device
from halfreel_runtime.memory import MemoryMonitor

# Eight replies at once share a step for little more than one takes; each further slot is memory that others could use.
_SLOT_COUNT = 8


@dataclass(frozen=True)
class ServedModel:
    """The model with all that belongs to it."""

    checkpoint: Checkpoint
    text_model: TextModel
    reader: RequestReader
    defaults: Defaults
    context_token_count: int


def load_served_model(settings: LlmSettings, device: Device, memory: MemoryMonitor) -> ServedModel:
    """Loads and warms the model; its phase is "load".

    Raises:
        CheckpointError: The model isn't here, or this server can't run it.
    """
    checkpoint = find_checkpoint(settings.model)
    context = _context_token_count(settings, checkpoint)
    tokenizer = open_tokenizer(checkpoint)
    dtype = choose_dtype(settings.precision, on_gpu=device.kind == "cuda")
    with memory.phase("load"):
        target, int8 = torch.device(device.torch_name), settings.precision == "int8"
        # Weights in 8 bits are made one after another out of the file's pages, so that both never lie on the device.
        model = load_model(checkpoint, device=torch.device("cpu") if int8 else target, dtype=dtype)
        network = Network(model, context, device=target, int8=int8)
        del model  # its weights are the network's now
    text_model = TextModel(
        network, tokenizer, memory, slot_count=settings.slot_count or _SLOT_COUNT, context_token_count=context
    )
    text_model.warm_up()
    memory.clear()  # what the warm-up's cache held
    defaults = Defaults.of(checkpoint.generation_defaults, context)
    schemas = SchemaCompiler(tokenizer.grammar_tokenizer(checkpoint.config.vocab_size), tokenizer.reply_leads)
    reader = RequestReader(tokenizer, schemas, context_token_count=context, defaults=defaults)
    return ServedModel(checkpoint, text_model, reader, defaults, context)


def _context_token_count(settings: LlmSettings, checkpoint: Checkpoint) -> int:
    own: int = checkpoint.config.max_position_embeddings
    asked = settings.context_token_count or own
    if asked > own:
        raise CheckpointError(f"context_token_count is {asked}; model {checkpoint.model_id} can take at most {own}")
    return asked
