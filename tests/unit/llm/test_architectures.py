"""Every family on the allowlist at tiny size: what is loaded computes what was saved."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import tiny_llm
import torch
from transformers import (
    GlmConfig,
    GlmForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from halfreel_llm.architectures import ARCHITECTURES
from halfreel_llm.checkpoint import CheckpointError, find_checkpoint
from halfreel_llm.weights import load_model

CPU = torch.device("cpu")
SHAPE = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
FAMILIES = {
    "glm": (GlmConfig, GlmForCausalLM, {"head_dim": 16}),
    "llama": (
        LlamaConfig,
        LlamaForCausalLM,
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": 8, "head_dim": 16}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"tie_word_embeddings": True}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 32}),
}


def test_every_family_of_the_allowlist_is_tested() -> None:
    assert set(FAMILIES) | {"chatglm"} == set(ARCHITECTURES)  # chatglm: test_chatglm3.py


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_loaded_computes_what_was_saved(family: str, tmp_path: Path) -> None:
    config_class, model_class, changes = FAMILIES[family]
    torch.manual_seed(0)
    saved = model_class(config_class(**(SHAPE | changes))).eval()
    saved.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    checkpoint = find_checkpoint(str(tmp_path))
    loaded = load_model(checkpoint, device=CPU, dtype=torch.float32)
    ids = torch.arange(1, 61)[None]
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, saved(ids).logits)
    assert type(loaded) is model_class
    assert not loaded.training


def test_rope_in_the_words_of_older_configs_is_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    rope: dict[str, Any] = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1234.0}
    saved = LlamaForCausalLM(LlamaConfig(**SHAPE, rope_parameters=rope)).eval()
    saved.save_pretrained(tmp_path)
    older = {"rope_parameters": None, "rope_theta": 1234.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    tiny_llm.change_json(tmp_path / "config.json", **older)
    loaded = load_model(find_checkpoint(str(tmp_path)), device=CPU, dtype=torch.float32)
    ids = torch.arange(1, 61)[None]
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, saved(ids).logits)


def test_a_head_stored_although_it_is_tied_is_ignored(tmp_path: Path) -> None:
    torch.manual_seed(0)
    saved = Qwen2ForCausalLM(Qwen2Config(**SHAPE)).eval()
    saved.save_pretrained(tmp_path)
    tiny_llm.change_json(tmp_path / "config.json", tie_word_embeddings=True)
    loaded = load_model(find_checkpoint(str(tmp_path)), device=CPU, dtype=torch.float32)
    assert loaded.lm_head.weight.data_ptr() == loaded.model.embed_tokens.weight.data_ptr()


def test_a_model_with_buffers_that_nothing_fills_is_refused(tmp_path: Path) -> None:
    class WithBuffer(GlmForCausalLM):
        def __init__(self, config: GlmConfig) -> None:
            super().__init__(config)
            self.register_buffer("table", torch.zeros(3), persistent=False)

    tiny_llm.save_glm(tmp_path)
    checkpoint = find_checkpoint(str(tmp_path))
    changed = dataclasses.replace(checkpoint.architecture, model_class=WithBuffer)
    with pytest.raises(CheckpointError, match="table"):
        load_model(dataclasses.replace(checkpoint, architecture=changed), device=CPU, dtype=torch.float32)
