"""Draws docs/images/llm-performance.svg from the results of the language model's benchmarks.

    python benchmarks/plot_llm.py

Needs matplotlib, which nothing else of the project does.
"""

import json
from pathlib import Path
from typing import Any

from matplotlib import pyplot

ROOT = Path(__file__).resolve().parents[1]
OURS, FLOOR, TARGET, PEER = "#2a6f97", "#b0b7bd", "#d1495b", "#e9b44c"


def figures(name: str) -> dict[str, Any]:
    """The figures of one result."""
    found: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())["figures"]
    return found


def main() -> None:
    """Three panels: one reply, many replies at the client, and the CPU."""
    decode, serving, cpu = figures("llm_decode-h200"), figures("llm_serving-h200"), figures("llm_streams-cpu")
    pyplot.rcParams.update({"font.size": 9, "svg.hashsalt": "halfreel", "axes.spines.top": False})
    pyplot.rcParams["axes.spines.right"] = False
    drawn, (one, many, small) = pyplot.subplots(1, 3, figsize=(11, 3.4), constrained_layout=True)
    bars = [
        ("floor", decode["floor_ms"], FLOOR),
        ("target", 3.27, TARGET),
        ("at the client", serving["ms_per_token_1_greedy"], OURS),
        ("transformers\ncompiled", decode["peer_transformers_compiled"]["ms"], PEER),
        ("transformers\neager", decode["peer_transformers_eager"]["ms"], PEER),
    ]
    one.barh([name for name, _, _ in bars][::-1], [value for _, value, _ in bars][::-1],
             color=[colour for _, _, colour in bars][::-1])  # fmt: skip
    one.set_title("ChatGLM3-6B, one reply, H200:\nms a token")
    streams = ["64", "256"]
    many.bar([0, 1], [serving[f"tok_s_{each}"] for each in streams], 0.26, color=OURS, label="at the client")
    many.bar([0.28, 1.28], [10_600, 20_000], 0.26, color=TARGET, label="target")
    many.bar([0.56, 1.56], [15_800, 31_800], 0.26, color=FLOOR, label="floor")
    many.set_xticks([0.28, 1.28], [f"{each} replies" for each in streams])
    many.set_title("512 tokens in, 512 out, H200:\ntokens a second")
    many.legend(frameon=False)
    counts = [1, 8, 32]
    small.bar(["1", "8", "32"], [cpu[f"ratio_{each}"] for each in counts], color=OURS)
    small.axhline(1, color=FLOOR)
    small.set_xlabel("replies at once")
    small.set_title("Pocket model, CPU:\nover transformers' generate")
    path = ROOT / "docs" / "images" / "llm-performance.svg"
    drawn.savefig(path, metadata={"Date": None})
    print(path.name)


if __name__ == "__main__":
    main()
