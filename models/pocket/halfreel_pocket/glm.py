"""The architecture of pocket-glm: a GlmForCausalLM and a SentencePiece tokenizer in the ChatGLM3 layout.

Does not know what the model is trained on.
"""

import io
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import sentencepiece
import torch
from sentencepiece import sentencepiece_model_pb2
from transformers import GlmConfig, GlmForCausalLM

PIECE_COUNT = 1200
# ChatGLM3 appends its special tokens, in this order, to the pieces of the SentencePiece file.
SPECIALS = (
    "[MASK]",
    "[gMASK]",
    "[sMASK]",
    "sop",
    "eop",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
)
EOS_ID = 2
# 2,000 characters of four bytes each fall back to 8,000 byte tokens; the longest script comes on top.
CONTEXT_TOKEN_COUNT = 16384


def train_tokenizer(lines: Iterator[str]) -> bytes:
    """Contents of a tokenizer.model of PIECE_COUNT BPE pieces, learnt from `lines`; deterministic."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines,
        model_writer=model,
        model_type="bpe",
        vocab_size=PIECE_COUNT,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        split_by_unicode_script=False,  # so that '","picture":"' can be one piece
        max_sentencepiece_length=24,
        max_sentence_length=16384,
        unk_id=0,
        bos_id=1,
        eos_id=EOS_ID,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def fold_case(tokenizer: bytes) -> bytes:
    """The same pieces, but A to Z are read as a to z: an idea in capitals is the same idea. It writes as before."""
    folding = io.BytesIO()
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as rules:
        rules.writelines(f"{code:X}\t{code + 32:X}\n" for code in range(ord("A"), ord("Z") + 1))
        rules.flush()
        # Only a training compiles rules; of this one nothing else is used.
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["abc"] * 9),
            model_writer=folding,
            model_type="char",
            vocab_size=8,
            hard_vocab_limit=False,
            normalization_rule_tsv=rules.name,
            minloglevel=2,
        )
    compiled = sentencepiece_model_pb2.ModelProto.FromString(folding.getvalue())
    return _with_rules(tokenizer, "fold_case", compiled.normalizer_spec.precompiled_charsmap)


def keep_case(tokenizer: bytes) -> bytes:
    """What `fold_case` was given: for the answers that a training learns to write."""
    return _with_rules(tokenizer, "identity", b"")


def _with_rules(tokenizer: bytes, name: str, compiled: bytes) -> bytes:
    model = sentencepiece_model_pb2.ModelProto.FromString(tokenizer)
    model.normalizer_spec.name = name
    model.normalizer_spec.precompiled_charsmap = compiled
    changed: bytes = model.SerializeToString()
    return changed


def special_id(token: str) -> int:
    """Id of a special token of the ChatGLM3 layout."""
    return PIECE_COUNT + SPECIALS.index(token)


def build(seed: int) -> GlmForCausalLM:
    """A random pocket-glm, FP32, on the CPU."""
    torch.manual_seed(seed)
    config = GlmConfig(
        vocab_size=-(-(PIECE_COUNT + len(SPECIALS)) // 64) * 64,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=32,
        attention_bias=True,
        rms_norm_eps=1e-5,
        max_position_embeddings=CONTEXT_TOKEN_COUNT,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=[EOS_ID, special_id("<|user|>"), special_id("<|observation|>")],
    )
    return GlmForCausalLM(config)


def prompt_ids(processor: sentencepiece.SentencePieceProcessor, messages: Sequence[tuple[str, str]]) -> list[int]:
    """Token ids of a chat, (role, content) each, up to and with the assistant's role token.

    The layout of ChatGLM3: "[gMASK] sop", then per message its role token, a newline and the content,
    the last two encoded one by one.
    """
    ids = [special_id("[gMASK]"), special_id("sop")]
    for role, content in messages:
        ids += [special_id(f"<|{role}|>"), *processor.encode("\n"), *processor.encode(content)]
    return [*ids, special_id("<|assistant|>")]


def save(model: GlmForCausalLM, tokenizer: bytes, path: Path) -> None:
    """Write weights, configuration and tokenizer.model to the folder `path`."""
    model.save_pretrained(path)
    (path / "tokenizer.model").write_bytes(tokenizer)
