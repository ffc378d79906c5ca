"""Draws docs/images/llm-performance.svg from the results of the language model's benchmarks.

    python benchmarks/plot_llm.py

Needs matplotlib, which nothing else of the project does.
"""

import json
from pathlib import Path
from typing import Any

from matplotlib import pyplot

ROOT = Path(__file__).resolve().parents[1]
OURS, FLOOR, TARGET, PEER, VLLM = "#2a6f97", "#b0b7bd", "#d1495b", "#e9b44c", "#7b4f9d"


def figures(name: str) -> dict[str, Any]:
    """The figures of one result."""
    found: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())["figures"]
    return found


def told(name: str) -> dict[str, Any]:
    """What a log's lines tell, of a run that did not come to its result."""
    lines = (ROOT / "benchmarks" / "results" / f"{name}.log").read_text().splitlines()
    return {key: value for line in lines for key, value in json.loads(line).items()}


def beside(
    panel: Any, names: list[str], ours: list[float], *, target: list[float], vllm: list[float], floor: list[float]
) -> None:
    """Ours, the target, vLLM and the floor side by side, for each name."""
    kinds = [("at the client", ours, OURS), ("target", target, TARGET), ("vLLM, no server", vllm, VLLM)]
    kinds.append(("floor", floor, FLOOR))
    for place, (label, values, colour) in enumerate(kinds):
        panel.bar([number + 0.2 * place for number in range(len(names))], values, 0.18, color=colour, label=label)
    panel.set_xticks([number + 0.3 for number in range(len(names))], names)
    panel.legend(frameon=False, loc="upper left")


def main() -> None:
    """Four panels: one reply, its first token and many replies at the client, and the CPU."""
    decode, vllm, cpu = figures("llm_decode-h200"), figures("llm_vllm-h200"), figures("llm_streams-cpu")
    # The second run is the newer, and ended before 256 replies.
    serving = figures("llm_serving-h200") | told("llm_serving-h200.second")
    pyplot.rcParams.update({"font.size": 9, "svg.hashsalt": "halfreel", "axes.spines.top": False})
    pyplot.rcParams["axes.spines.right"] = False
    drawn, ((one, first), (many, small)) = pyplot.subplots(2, 2, figsize=(9, 6.4), constrained_layout=True)
    bars = [
        ("floor", decode["floor_ms"], FLOOR),
        ("target", 3.27, TARGET),
        ("at the client", serving["ms_per_token_1_greedy"], OURS),
        ("vLLM, no server", vllm["ms_per_token_1"], VLLM),
        ("transformers\ncompiled", decode["peer_transformers_compiled"]["ms"], PEER),
        ("transformers\neager", decode["peer_transformers_eager"]["ms"], PEER),
    ]
    one.barh([name for name, _, _ in bars][::-1], [value for _, value, _ in bars][::-1],
             color=[colour for _, _, colour in bars][::-1])  # fmt: skip
    one.set_title("ChatGLM3-6B, one reply, H200:\nms a token")
    beside(
        first,
        ["512 tokens in", "2,048 tokens in"],
        [serving["ttft_512_ms"], serving["ttft_2048_ms"]],
        target=[15, 50],
        vllm=[vllm["ttft_512_ms"], vllm["ttft_2048_ms"]],
        floor=[7.5, 30.8],
    )
    first.set_title("First token, H200:\nms")
    beside(
        many,
        ["64 replies", "256 replies"],
        [serving["tok_s_64"], serving["tok_s_256"]],
        target=[10_600, 20_000],
        vllm=[vllm["tok_s_64"], vllm["tok_s_256"]],
        floor=[15_800, 31_800],
    )
    many.set_title("512 tokens in, 512 out, H200:\ntokens a second")
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
