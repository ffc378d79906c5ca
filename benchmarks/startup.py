"""How soon does the language model's server serve, and how fast does it read its weights?

    python benchmarks/startup.py [--tiny] [--folder /dev/shm/halfreel-chatglm3] [--write]

The real server, started twice: the first start compiles its kernels into the folder that it keeps, the second finds
them. From the start of the process until health says SERVING; the weights are in the page cache both times.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import grpc
from llm_bench import card, make_folder, result_of, serving, write_result

from halfreel.llm.v1 import llm_pb2, llm_pb2_grpc


def measure(folder: Path, flags: list[str], prompt: int) -> dict[str, Any]:
    """Two starts; what is planned is a reply after so many tokens of prompt."""
    figures: dict[str, Any] = {}
    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    for name in ("first", "warm"):
        with serving(folder, *flags, log=Path(f"/tmp/startup-{name}.log")) as server:
            figures[f"serving_{name}_s"] = server.serving_s
            with grpc.insecure_channel(server.address) as channel:
                stub = llm_pb2_grpc.LlmServiceStub(channel)
                report = stub.MemoryStatus(llm_pb2.MemoryStatusRequest()).report
                plan = stub.PlanMemory(llm_pb2.PlanMemoryRequest(prompt_token_count=prompt)).plan
            load = next(each for each in report.devices[0].phase_peaks if each.phase == "load")
            figures[f"load_{name}_s"] = load.duration.ToMilliseconds() / 1000
            figures["reserved_gib"] = report.devices[0].reserved_bytes / 2**30
            figures["planned_gib"] = plan.peak_reserved_bytes / 2**30
        print(json.dumps(figures), flush=True)
    figures["load_gb_s"] = stored / 1e9 / figures["load_warm_s"]
    figures["serving_s"] = figures["serving_warm_s"]
    return figures


def main() -> None:
    """Measures, and prints the result last."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--tiny", action="store_true")
    arguments.add_argument("--folder", type=Path, default=Path("/dev/shm/halfreel-chatglm3"))
    arguments.add_argument("--flags", default="", help="more flags of the server")
    arguments.add_argument("--write", action="store_true", help="into benchmarks/results/")
    read = arguments.parse_args()
    folder = read.folder.with_name(read.folder.name + "-tiny") if read.tiny else read.folder
    make_folder(folder, tiny=read.tiny)
    figures = measure(folder, read.flags.split(), 64 if read.tiny else 512)
    line = result_of(figures, where=card(), libraries=("torch", "transformers", "safetensors"))
    if read.write:
        write_result(line, "startup", card())
    print(line)


if __name__ == "__main__":
    main()
