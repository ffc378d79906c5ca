"""ChatGLM3's original checkpoint layout, held against an independent implementation: the one in diffusers' Kolors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_llm
import torch
from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import DynamicCache

from halfreel_llm.checkpoint import CheckpointError, find_checkpoint
from halfreel_llm.weights import load_model

CPU = torch.device("cpu")


def reference_model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    shape = {
        key: value for key, value in tiny_llm.CHATGLM3_CONFIG.items() if key not in ("model_type", "original_rope")
    }
    config = ChatGLMConfig(**shape)
    config.__dict__.update(torch_dtype=torch.float32, original_rope=True, use_cache=True)
    model = ChatGLMModel(config, empty_init=False).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape)
            parameter.copy_(1 + 0.2 * noise if "layernorm" in name else 0.08 * noise)
    return model


def save_original(model: nn.Module, folder: Path) -> None:
    """Writes the published layout: its names, two shards and an index, and the stored rotary frequencies."""
    tensors = {f"transformer.{name}": values.contiguous() for name, values in model.state_dict().items()}
    tensors["transformer.rotary_pos_emb.inv_freq"] = torch.ones(8)
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, its_names in shards.items():
        save_file({name: tensors[name] for name in its_names}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, its_names in shards.items() for name in its_names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    published = {
        "auto_map": {"AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration"},
        "torch_dtype": "float16",
    }
    (folder / "config.json").write_text(json.dumps(tiny_llm.CHATGLM3_CONFIG | published))


def reference_logits(model: Any, ids: Tensor) -> Tensor:
    positions = torch.arange(ids.shape[1])[None].expand_as(ids)
    with torch.no_grad():
        hidden = model(input_ids=ids, position_ids=positions, return_dict=False, output_hidden_states=False)[0]
        logits: Tensor = model.output_layer(hidden).transpose(0, 1)
    return logits


@pytest.fixture
def original(tmp_path: Path) -> nn.Module:
    model = reference_model(seed=0)
    save_original(model, tmp_path)
    return model


def test_fp32_logits_are_those_of_the_independent_implementation(original: nn.Module, tmp_path: Path) -> None:
    ours = load_model(find_checkpoint(str(tmp_path)), device=CPU, dtype=torch.float32)
    ids = torch.randint(0, tiny_llm.VOCABULARY_SIZE, (2, 40), generator=torch.Generator().manual_seed(1))
    theirs = reference_logits(original, ids)
    with torch.no_grad():
        difference = (ours(ids).logits - theirs).abs().max().item()
    assert theirs.abs().max() > 1  # the agreement is not one of zeros
    assert difference < 1e-4


def test_greedy_tokens_are_those_of_the_independent_implementation(original: nn.Module, tmp_path: Path) -> None:
    ours = load_model(find_checkpoint(str(tmp_path)), device=CPU, dtype=torch.float32)
    prompt = torch.randint(0, tiny_llm.VOCABULARY_SIZE, (1, 11), generator=torch.Generator().manual_seed(2))
    theirs = prompt
    for _ in range(16):
        theirs = torch.cat([theirs, reference_logits(original, theirs)[:, -1:].argmax(-1)], dim=1)
    cache, step, tokens = DynamicCache(config=ours.config), prompt, []
    for _ in range(16):
        with torch.no_grad():
            step = ours(step, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
        tokens.append(int(step))
    assert tokens == theirs[0, 11:].tolist()


@pytest.mark.parametrize("broken", ["gate and up swapped", "key and value swapped"])
def test_a_wrong_mapping_is_told_apart(original: nn.Module, tmp_path: Path, broken: str) -> None:
    file = next(file for file in tmp_path.glob("*.safetensors") if any("dense_h_to_4h" in n for n in load_file(file)))
    for file in tmp_path.glob("*.safetensors"):
        tensors = load_file(file)
        for name, values in tensors.items():
            if broken.startswith("gate") and "dense_h_to_4h" in name:
                gate, up = values.chunk(2)
                tensors[name] = torch.cat([up, gate])
            if broken.startswith("key") and "query_key_value" in name:
                query, key, value = values.split([128, 64, 64])
                tensors[name] = torch.cat([query, value, key])
        save_file(tensors, file)
    ours = load_model(find_checkpoint(str(tmp_path)), device=CPU, dtype=torch.float32)
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        assert (ours(ids).logits - reference_logits(original, ids)).abs().max() > 0.1


def test_fp16_weights_stay_fp16_and_agree(original: nn.Module, tmp_path: Path) -> None:
    ours = load_model(find_checkpoint(str(tmp_path)), device=CPU, dtype=torch.float16)
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float16}
    ids = torch.arange(3, 43)[None]
    theirs = reference_logits(original, ids)
    with torch.no_grad():
        same = (ours(ids).logits.argmax(-1) == theirs.argmax(-1)).float().mean()
    assert same >= 0.9


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"add_bias_linear": True}, "add_bias_linear is True"),
        ({"rmsnorm": False}, "rmsnorm is False"),
        ({"quantization_bit": 4}, "quantization_bit is 4"),
        ({"pre_seq_len": 128}, "pre_seq_len is 128"),
        ({"kv_channels": None}, "lacks 'kv_channels'"),
    ],
)
def test_a_network_that_is_not_glm_is_refused(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    save_original(reference_model(0), tmp_path)
    tiny_llm.change_json(tmp_path / "config.json", **change)
    with pytest.raises(CheckpointError, match=told):
        find_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"num_layers": 4}, "tensors are missing"),
        ({"num_layers": 2}, "unknown tensor"),
        ({"kv_channels": 16}, "doesn't fit its config.json|has the shape"),
        ({"ffn_hidden_size": 343}, "has the shape"),
    ],
)
def test_weights_that_are_not_those_of_the_config_are_refused(
    tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    save_original(reference_model(0), tmp_path)
    tiny_llm.change_json(tmp_path / "config.json", **change)
    with pytest.raises(CheckpointError, match=told):
        load_model(find_checkpoint(str(tmp_path)), device=CPU, dtype=torch.float32)
