"""Writes a ChatGLM3 folder with random FP16 weights, in the published checkpoint's layout: `make_chatglm3.py FOLDER`.

The weights are drawn on the device and written shard by shard, so that the whole model is never in memory. The
tokenizer has the published layout and fewer pieces.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tiny_llm

# config.json of THUDM/chatglm3-6b, as far as it says what the network is.
PUBLISHED = {
    "model_type": "chatglm",
    "architectures": ["ChatGLMModel"],
    "auto_map": {"AutoConfig": "configuration_chatglm.ChatGLMConfig", "AutoModel": "modeling_chatglm.ChatGLMModel"},
    "num_layers": 28,
    "padded_vocab_size": 65024,
    "hidden_size": 4096,
    "ffn_hidden_size": 13696,
    "kv_channels": 128,
    "num_attention_heads": 32,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "seq_length": 8192,
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_residual_connection_post_layernorm": False,
    "fp32_residual_connection": False,
    "rmsnorm": True,
    "post_layer_norm": True,
    "original_rope": True,
    "layernorm_epsilon": 1e-05,
    "torch_dtype": "float16",
}
LAYERS_PER_SHARD = 4


def shards(config: dict[str, int]) -> Iterator[dict[str, tuple[int, ...]]]:
    """Yields the shapes of each shard's tensors by their published names."""
    hidden, ffn, head = config["hidden_size"], config["ffn_hidden_size"], config["kv_channels"]
    queries, fused = (
        config["num_attention_heads"] * head,
        (config["num_attention_heads"] + 2 * config["multi_query_group_num"]) * head,
    )
    vocabulary = config["padded_vocab_size"]
    yield {
        "transformer.embedding.word_embeddings.weight": (vocabulary, hidden),
        "transformer.rotary_pos_emb.inv_freq": (head // 4,),
    }
    for begin in range(0, config["num_layers"], LAYERS_PER_SHARD):
        shard: dict[str, tuple[int, ...]] = {}
        for index in range(begin, min(begin + LAYERS_PER_SHARD, config["num_layers"])):
            layer = f"transformer.encoder.layers.{index}."
            shard |= {
                layer + "input_layernorm.weight": (hidden,),
                layer + "self_attention.query_key_value.weight": (fused, hidden),
                layer + "self_attention.query_key_value.bias": (fused,),
                layer + "self_attention.dense.weight": (hidden, queries),
                layer + "post_attention_layernorm.weight": (hidden,),
                layer + "mlp.dense_h_to_4h.weight": (2 * ffn, hidden),
                layer + "mlp.dense_4h_to_h.weight": (hidden, ffn),
            }
        yield shard
    yield {
        "transformer.encoder.final_layernorm.weight": (hidden,),
        "transformer.output_layer.weight": (vocabulary, hidden),
    }


def write(folder: Path, config: dict[str, int], device: torch.device, *, endless: bool = False) -> None:
    """Writes config, tokenizer, shards and index; the replies of an endless model are as long as they may be."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator(device).manual_seed(0)
    weight_map = {}
    for number, shapes in enumerate(shards(config), 1):
        name = f"model-{number:05d}.safetensors"
        tensors = {}
        for tensor, shape in shapes.items():
            drawn = 0.02 * torch.randn(shape, dtype=torch.float16, device=device, generator=generator)
            tensors[tensor] = (drawn + 1 if "layernorm" in tensor else drawn).cpu()
            if endless:
                _never_end(tensor, tensors[tensor])
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.model").write_bytes(tiny_llm.train_pieces())


def _never_end(name: str, values: torch.Tensor) -> None:
    """Makes one number of every token's state a constant, and the tokens that end a reply unlikely for it."""
    if name.endswith("word_embeddings.weight"):
        values[:, 0] = 1.0
    elif name.endswith(("dense.weight", "dense_4h_to_h.weight")):
        values[0] = 0.0
    elif name.endswith("output_layer.weight"):
        values[[2, *range(tiny_llm.PIECE_COUNT, tiny_llm.PIECE_COUNT + 9)], 0] = -3000.0


def main() -> None:
    """Reads the flags and writes the folder."""
    parser = argparse.ArgumentParser(description="Writes a ChatGLM3 folder with random weights.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiny", action="store_true", help="the same layout with 5 small layers")
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--endless", action="store_true", help="replies never end by themselves, for benchmarks")
    flags = parser.parse_args()
    small = {"num_layers": 5, "padded_vocab_size": 1024, "hidden_size": 64, "ffn_hidden_size": 128}
    small |= {"kv_channels": 16, "num_attention_heads": 4, "seq_length": 512}
    write(flags.folder, PUBLISHED | (small if flags.tiny else {}), torch.device(flags.device), endless=flags.endless)


if __name__ == "__main__":
    main()
