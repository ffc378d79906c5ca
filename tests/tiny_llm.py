"""Tiny random language models of the real classes, saved as folders."""

from __future__ import annotations

import functools
import io
import json
import re
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from transformers import GlmConfig, GlmForCausalLM

from halfreel_llm.checkpoint import Checkpoint
from halfreel_llm.generation import TextModel
from halfreel_llm.network import Network
from halfreel_llm.tokenizer import TextTokenizer
from halfreel_llm.weights import load_model
from halfreel_runtime.device import CPU
from halfreel_runtime.memory import MemoryMonitor

PIECE_COUNT = 1000
VOCABULARY_SIZE = 1024  # the pieces, nine control tokens, and padding as in the published checkpoint
CONTEXT_TOKEN_COUNT = 1024

_WORDS = re.findall(
    r"\w+",
    """
a an the red blue green yellow circle square star moon ship whale city forest river mountain old young keeper
light house sailor child bird morning evening night rain snow wind storm over under behind toward slowly
quickly moves turns rises falls glows camera pans film scene narration picture seconds title music quiet
bright dark golden silver every day begins again with one small step and nobody saw how it ended until
somebody told this story
""",
)
_CHINESE = (
    "你好，请为我写一个三分钟的短视频脚本。",
    "场景一：清晨的城市，阳光洒在街道上。",
    "旁白：每一天都是新的开始。",
)


def _corpus() -> list[str]:
    lines = []
    for index in range(3000):
        picked = [_WORDS[(index * 7 + step * (index % 13 + 1)) % len(_WORDS)] for step in range(4 + index % 9)]
        text = " ".join(picked)
        lines.append(f'{{"title":"{text}","seconds":{index % 60}}}' if index % 3 == 0 else text.capitalize() + ".")
    return lines + [text * (index % 3 + 1) for index in range(60) for text in _CHINESE]


@functools.cache
def train_pieces() -> bytes:
    """The contents of a tokenizer.model of PIECE_COUNT pieces, of ChatGLM3's kind."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_corpus()),
        model_writer=model,
        vocab_size=PIECE_COUNT,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.9995,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def glm(seed: int = 0, **changes: Any) -> GlmForCausalLM:
    """A random model of 0.2 million parameters; its logits are spread enough for sampling to matter."""
    torch.manual_seed(seed)
    shape = {
        "vocab_size": VOCABULARY_SIZE,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": CONTEXT_TOKEN_COUNT,
        "pad_token_id": 0,
        "eos_token_id": [2],
        "initializer_range": 0.2,
    }
    return GlmForCausalLM(GlmConfig(**(shape | changes))).eval()


def save_glm(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Saves a random model with its tokenizer; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    glm(seed, **changes).save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(train_pieces())
    return folder


def text_model(checkpoint: Checkpoint, tokenizer: TextTokenizer, slot_count: int = 4) -> TextModel:
    """Loads a folder through the server's own path, on the CPU in FP32."""
    model = load_model(checkpoint, device=torch.device("cpu"), dtype=torch.float32)
    context = checkpoint.config.max_position_embeddings
    return TextModel(
        Network(model, context), tokenizer, MemoryMonitor(CPU), slot_count=slot_count, context_token_count=context
    )


CHATGLM3_CONFIG: dict[str, Any] = {
    "model_type": "chatglm",
    "architectures": ["ChatGLMModel"],
    "num_layers": 3,
    "padded_vocab_size": VOCABULARY_SIZE,
    "hidden_size": 128,
    "ffn_hidden_size": 344,
    "kv_channels": 32,
    "num_attention_heads": 4,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "seq_length": 256,
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "rmsnorm": True,
    "post_layer_norm": True,
    "original_rope": True,
    "layernorm_epsilon": 1e-5,
}
"""A small config.json in the words of the published ChatGLM3-6B checkpoint."""


def read_json(file: Path) -> dict[str, Any]:
    """Reads a JSON object."""
    values: dict[str, Any] = json.loads(file.read_text())
    return values


def change_json(file: Path, **changes: Any) -> None:
    """Changes some keys of a JSON file; None removes a key."""
    values = {key: value for key, value in (read_json(file) | changes).items() if value is not None}
    file.write_text(json.dumps(values))
