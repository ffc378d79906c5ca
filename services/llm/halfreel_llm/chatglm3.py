"""ChatGLM3's original checkpoint layout, read into transformers' `GlmForCausalLM`, which is the same network.

Knows names and shapes alone; no file is opened here and no code of a checkpoint is ever run. Source of the layout: the
config.json and tensor names of the published THUDM/chatglm3-6b checkpoint. That the two networks agree is held
by a test against an independent implementation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from transformers import GlmConfig, PreTrainedConfig

# Switches of the original code under which `GlmForCausalLM` would be another network.
_REQUIRED = {
    "rmsnorm": True,
    "multi_query_attention": True,
    "post_layer_norm": True,
    "original_rope": True,
    "add_bias_linear": False,
    "apply_residual_connection_post_layernorm": False,
    "fp32_residual_connection": False,
}
_REFUSED = ("pre_seq_len", "quantization_bit")  # prefix tuning; weights in 4 or 8 bits

_TOP = {
    "transformer.embedding.word_embeddings.weight": "model.embed_tokens.weight",
    "transformer.encoder.final_layernorm.weight": "model.norm.weight",
    "transformer.output_layer.weight": "lm_head.weight",
}
_IN_LAYER = {
    "input_layernorm.weight": "input_layernorm.weight",
    "post_attention_layernorm.weight": "post_attention_layernorm.weight",
    "self_attention.dense.weight": "self_attn.o_proj.weight",
    "mlp.dense_h_to_4h.weight": "mlp.gate_up_proj.weight",  # gate first, then up, in both
    "mlp.dense_4h_to_h.weight": "mlp.down_proj.weight",
}
_LAYER = re.compile(r"transformer\.encoder\.layers\.(\d+)\.(.+)")
_FUSED = re.compile(r"self_attention\.query_key_value\.(weight|bias)")
_COMPUTED = "transformer.rotary_pos_emb.inv_freq"  # follows from the config


def read_config(values: Mapping[str, Any]) -> GlmConfig:
    """Translates an original config.json.

    Args:
        values: The parsed config.json.

    Returns:
        The same network as a `GlmConfig`.

    Raises:
        KeyError: A size is missing.
        ValueError: A switch asks for a network that `GlmForCausalLM` is not.
    """
    for name, required in _REQUIRED.items():
        if bool(values.get(name, required)) is not required:
            raise ValueError(f"{name} is {values[name]!r}; only {required!r} is supported")
    for name in _REFUSED:
        if values.get(name):
            raise ValueError(f"{name} is {values[name]!r}; it is not supported")
    return GlmConfig(
        vocab_size=values["padded_vocab_size"],
        hidden_size=values["hidden_size"],
        intermediate_size=values["ffn_hidden_size"],
        num_hidden_layers=values["num_layers"],
        num_attention_heads=values["num_attention_heads"],
        num_key_value_heads=values["multi_query_group_num"],
        head_dim=values["kv_channels"],
        max_position_embeddings=values["seq_length"],
        rms_norm_eps=values["layernorm_epsilon"],
        attention_bias=values.get("add_qkv_bias", False),
        attention_dropout=0.0,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0 * values.get("rope_ratio", 1),
            "partial_rotary_factor": 0.5,  # rotary positions on the first half of each head
        },
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=[2],
    )


def convert_weight(name: str, tensor: Tensor, config: PreTrainedConfig) -> Iterator[tuple[str, Tensor]]:
    """Yields the parameters of `GlmForCausalLM` that one original tensor holds; views of it, never copies.

    Args:
        name: The tensor's name in the checkpoint.
        tensor: Its values. A fused `query_key_value` is [q | k | v] along the first dimension.
        config: What `read_config` returned.

    Raises:
        KeyError: The name is not of this layout.
    """
    if name == _COMPUTED:
        return
    if name in _TOP:
        yield _TOP[name], tensor
        return
    in_layer = _LAYER.fullmatch(name)
    if in_layer is None:
        raise KeyError(name)
    prefix, rest = f"model.layers.{in_layer[1]}.", in_layer[2]
    fused = _FUSED.fullmatch(rest)
    if fused is None:
        yield prefix + _IN_LAYER[rest], tensor
        return
    query_rows = config.num_attention_heads * config.head_dim
    key_rows = config.num_key_value_heads * config.head_dim
    parts = tensor.split([query_rows, key_rows, key_rows])
    for part, projection in zip(parts, ("q_proj", "k_proj", "v_proj"), strict=True):
        yield f"{prefix}self_attn.{projection}.{fused[1]}", part
