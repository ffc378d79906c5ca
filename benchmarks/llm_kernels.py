"""How close to the memory's speed is each product of ChatGLM3-6B's step, by our kernels and by cuBLAS?

    python benchmarks/llm_kernels.py [--compile PART/PARTS] [--seconds 60]

For every matrix of a layer and for the head: microseconds and terabytes a second, for 1, 8, 16, 64 and 256 rows. Every
measurement goes through copies that together are larger than the GPU's cache. One JSON line a measurement; the last
line names the best. --compile only compiles a part of the variants, so that several processes can share that work.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from halfreel_llm import kernels
from halfreel_llm.weight import Weight

HIDDEN, FFN, FUSED, VOCABULARY = 4096, 13696, 4608, 65024
# Name, outputs, inputs, and what goes along with the product of one row.
PRODUCTS = (
    ("query_key_value", FUSED, HIDDEN, "normed"),
    ("output", HIDDEN, HIDDEN, "added"),
    ("gate_up", 2 * FFN, HIDDEN, "gated"),
    ("down", HIDDEN, FFN, "added"),
    ("head", VOCABULARY, HIDDEN, "normed"),
)
VECTOR_BLOCKS = (
    (1, 4096, 4), (2, 2048, 4), (4, 1024, 4), (4, 2048, 8), (8, 1024, 8), (8, 512, 4), (16, 512, 8), (4, 512, 2),
)  # fmt: skip
GATED_BLOCKS = ((1, 4096, 8), (1, 2048, 4), (2, 1024, 4), (2, 2048, 8), (4, 1024, 8), (4, 512, 4), (8, 512, 8))
FEW_BLOCKS = {
    8: ((16, 32, 128, 4, 4), (16, 16, 256, 4, 4), (16, 32, 256, 4, 3), (16, 64, 128, 4, 4), (16, 16, 128, 2, 6)),
    64: ((64, 32, 128, 4, 4), (64, 64, 128, 4, 3), (64, 32, 64, 4, 6), (64, 64, 64, 4, 5)),
}
CACHE_BYTES = 200e6


def variants() -> list[tuple[str, str, int, tuple[int, ...] | None, bool]]:
    """Every measurement: kind, product, rows, block, 8-bit weights."""
    found: list[tuple[str, str, int, tuple[int, ...] | None, bool]] = []
    for name, _, _, along in PRODUCTS:
        blocks = GATED_BLOCKS if along == "gated" else VECTOR_BLOCKS
        found += [("vector", name, 1, block, False) for block in blocks]
        found += [("vector", name, 1, block, True) for block in blocks[2:5]]
        for rows, few in FEW_BLOCKS.items():
            found += [("few", name, rows, block, False) for block in few]
        found += [("few", name, 8, FEW_BLOCKS[8][0], True)]
        found += [("cublas", name, rows, None, False) for rows in (1, 8, 16, 64, 256)]
    return found


class Bench:
    """The matrices, as many copies of each as pass the cache."""

    def __init__(self) -> None:
        self._weights: dict[tuple[str, bool], list[Weight]] = {}

    def call(self, variant: tuple[Any, ...]) -> tuple[Callable[[Weight], Any], list[Weight]]:
        """What a variant does with one copy, and the copies."""
        kind, name, rows, block, int8 = variant
        _, size_out, size_in, along = next(each for each in PRODUCTS if each[0] == name)
        key = (name, int8)
        if key not in self._weights:
            self._weights.clear()
            count = max(2, min(12, round(CACHE_BYTES / (size_out * size_in * (1 if int8 else 2)))))
            self._weights[key] = []
            for _ in range(count):
                weight = Weight(0.02 * torch.randn(size_out, size_in, device="cuda", dtype=torch.float16), None)
                if int8:
                    weight.quantise()
                self._weights[key].append(weight)
        row = torch.randn(rows, size_in, device="cuda", dtype=torch.float16)
        norm = torch.ones(size_in, device="cuda", dtype=torch.float16)
        added = torch.randn(rows, size_out, device="cuda", dtype=torch.float16)
        if kind == "cublas":
            return lambda weight: weight(row), self._weights[key]
        if kind == "few":
            return lambda weight: kernels.few_products(row, weight, block=block), self._weights[key]
        extra: dict[str, Any] = {"block": block}
        if along != "added":
            extra |= {"norm": norm, "epsilon": 1e-5, "gated": along == "gated"}
        else:
            extra["residual"] = added
        return lambda weight: kernels.vector_product(row, weight, **extra), self._weights[key]

    def microseconds(self, variant: tuple[Any, ...]) -> tuple[float, float]:
        """The median time of one product in a captured row of them, and its terabytes of weights a second."""
        call, weights = self.call(variant)
        for weight in weights[:2]:
            call(weight)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for weight in weights:
                call(weight)
        times = []
        for _ in range(7):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            graph.replay()
            graph.replay()
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end) / 2 / len(weights) * 1000)
        median = sorted(times)[len(times) // 2]
        return median, weights[0].byte_count / median / 1e6


def copy_speed() -> float:
    """Terabytes a second of a large copy on the device, read and written."""
    source = torch.randn(2**29, device="cuda", dtype=torch.float16)
    target = torch.empty_like(source)
    times = []
    for _ in range(8):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        target.copy_(source)
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return 2 * source.numel() * 2 / sorted(times)[4] / 1e9


def main() -> None:
    """Measures, or compiles."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--compile", default="")
    arguments.add_argument("--seconds", type=float, default=60.0)
    read = arguments.parse_args()
    bench, deadline = Bench(), time.monotonic() + read.seconds
    chosen = variants()
    if read.compile:
        part, parts = map(int, read.compile.split("/"))
        for variant in chosen[part::parts]:
            if variant[0] != "cublas" and time.monotonic() < deadline:
                call, weights = bench.call(variant)
                try:
                    call(weights[0])
                except Exception as error:  # told when it is measured
                    print(variant, error, file=sys.stderr)
        return
    print(json.dumps({"copy_tb_s": round(copy_speed(), 3), "card": torch.cuda.get_device_name()}), flush=True)
    best: dict[str, tuple[float, str]] = {}
    for variant in chosen:
        if time.monotonic() > deadline:
            print(json.dumps({"stopped_before": str(variant)}), flush=True)
            break
        kind, name, rows, block, int8 = variant
        try:
            taken, speed = bench.microseconds(variant)
        except Exception as error:
            print(json.dumps({"variant": str(variant), "failed": str(error)[:200]}), flush=True)
            continue
        line = {"kind": kind, "product": name, "rows": rows, "block": block, "int8": int8}
        print(json.dumps(line | {"us": round(taken, 2), "tb_s": round(speed, 3)}), flush=True)
        key = f"{name} x{rows}{' int8' if int8 else ''}"
        if key not in best or taken < best[key][0]:
            best[key] = (round(taken, 2), f"{kind} {block} {speed:.2f} TB/s")
    print(json.dumps({"figures": best}))


if __name__ == "__main__":
    main()
