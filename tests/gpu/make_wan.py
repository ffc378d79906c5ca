"""Writes Wan 2.1's text-to-video model of 1.3 billion parameters with random weights: the real classes, real sizes.

Memory and speed do not depend on the values. The text encoder is UMT5-XXL's at its full 5.7 billion parameters; it and
the transformer are stored in BF16, the VAE in FP32. The tokenizer has the published kind and fewer pieces. `--size
tiny` has the same parts at a fraction of the size, to try the scripts without a GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tiny_video

# transformer/config.json of Wan-AI/Wan2.1-T2V-1.3B-Diffusers, as far as it says what the network is.
TRANSFORMER = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 12,
    "attention_head_dim": 128,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 4096,
    "freq_dim": 256,
    "ffn_dim": 8960,
    "num_layers": 30,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "eps": 1e-6,
    "rope_max_seq_len": 1024,
}
# text_encoder/config.json of the same, which is google/umt5-xxl's.
TEXT_ENCODER = {
    "vocab_size": 256384,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "relative_attention_num_buckets": 32,
    "feed_forward_proj": "gated-gelu",
}
# Written shard by shard, so that the host holds little more than one of them beside the files.
SHARD = "4GB"


def wan(device: torch.device) -> Any:
    """Builds the pipeline on a device: 1419.0 M + 5680.9 M + 126.9 M parameters, 14.7 GB."""
    small = tiny_video.wan_pipeline()  # its tokenizer and scheduler have no size
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)  # never in FP32, not even while it is drawn
    try:
        with device:
            transformer = WanTransformer3DModel(**TRANSFORMER)
            text_encoder = UMT5EncoderModel(UMT5Config(**TEXT_ENCODER))
    finally:
        torch.set_default_dtype(torch.float32)
    with device:
        vae = AutoencoderKLWan()
    return WanPipeline(
        tokenizer=small.tokenizer,
        text_encoder=text_encoder.to(torch.bfloat16).eval(),
        transformer=transformer.to(torch.bfloat16).eval(),
        vae=vae.eval(),
        scheduler=small.scheduler,
    )


def main() -> None:
    """Writes the folder, and ends with one line on what was written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=("real", "tiny"), default="real")
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    began_at = time.monotonic()
    pipeline = wan(torch.device(arguments.device)) if arguments.size == "real" else tiny_video.wan_pipeline()
    built_s = time.monotonic() - began_at
    pipeline.save_pretrained(arguments.folder / "wan", safe_serialization=True, max_shard_size=SHARD)
    counts = {
        part: sum(parameter.numel() for parameter in module.parameters())
        for part, module in pipeline.components.items()
        if isinstance(module, torch.nn.Module)
    }
    written_s = time.monotonic() - began_at - built_s
    seconds = {"built_s": round(built_s, 1), "written_s": round(written_s, 1)}
    print(json.dumps({"folder": str(arguments.folder), "parameter_counts": counts, **seconds}))


if __name__ == "__main__":
    main()
