"""The allowlist: which networks this server runs, by the `model_type` of a config.json.

Knows no folder. A model that isn't named here is refused: a config can't choose code, only one of these classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import (
    GlmConfig,
    GlmForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from halfreel_llm import chatglm3

# Of a config.json only these are read: the network's shape. The rest can name code, files or kernels, and is ignored.
_SHAPE_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
    "rope_parameters",
    "rope_theta",  # these three: how rope_parameters were written before transformers 5
    "rope_scaling",
    "partial_rotary_factor",
    "attention_bias",
    "mlp_bias",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "layer_types",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)


def _same_weight(name: str, tensor: Tensor, _config: PreTrainedConfig) -> Iterable[tuple[str, Tensor]]:
    if name.endswith("rotary_emb.inv_freq"):  # stored by old checkpoints; follows from the config
        return ()
    return ((name, tensor),)


@dataclass(frozen=True)
class Architecture:
    """How one family of checkpoints becomes a model."""

    model_class: type[PreTrainedModel]
    """The class that computes."""
    read_config: Callable[[Mapping[str, Any]], PreTrainedConfig]
    """Makes the class's config of a parsed config.json."""
    convert_weight: Callable[[str, Tensor, PreTrainedConfig], Iterable[tuple[str, Tensor]]] = _same_weight
    """Gives the parameters that one tensor of the checkpoint holds."""


def _shape_of(config_class: type[PreTrainedConfig]) -> Callable[[Mapping[str, Any]], PreTrainedConfig]:
    def read(values: Mapping[str, Any]) -> PreTrainedConfig:
        return config_class(**{key: values[key] for key in _SHAPE_KEYS if key in values})

    return read


ARCHITECTURES: Mapping[str, Architecture] = {
    "chatglm": Architecture(GlmForCausalLM, chatglm3.read_config, chatglm3.convert_weight),
    "glm": Architecture(GlmForCausalLM, _shape_of(GlmConfig)),
    "llama": Architecture(LlamaForCausalLM, _shape_of(LlamaConfig)),
    "mistral": Architecture(MistralForCausalLM, _shape_of(MistralConfig)),
    "qwen2": Architecture(Qwen2ForCausalLM, _shape_of(Qwen2Config)),
    "qwen3": Architecture(Qwen3ForCausalLM, _shape_of(Qwen3Config)),
}
"""The networks this server runs."""
