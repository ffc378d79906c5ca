"""What do FP16, BF16 and 8 bits change of the pocket models, and what do they and the levers take?

    python benchmarks/bench_precision.py [--write] [-- --frames 4 --steps 3 ...]

`halfreel bench precision` as anybody can run it; what follows the dashes is for it. --write keeps the rows, the table
and the picture in benchmarks/results/. Seconds are those of the machine as busy as it was; `cpu_s` is what the process
used of its cores.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from llm_bench import ROOT, card, result_of, write_result

NAME = "bench_precision"


def main() -> None:
    """Runs the command, and prints the result last."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--write", action="store_true", help="into benchmarks/results/")
    arguments.add_argument("flags", nargs="*", help="of the command")
    read = arguments.parse_args()
    where = card()
    command = [str(Path(sys.executable).with_name("halfreel")), "bench", "precision", "--json", *read.flags]
    if read.write:
        stem = ROOT / "benchmarks" / "results" / f"{NAME}-{where}"
        command += ["--markdown", f"{stem}.md", "--plot", f"{stem}.png"]
    rows = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            rows.append(json.loads(line))
    if process.returncode != 0:
        sys.exit(process.returncode)
    line = result_of({"rows": rows}, where=where, libraries=("torch", "diffusers", "transformers"))
    if read.write:
        write_result(line, NAME, where)
    print(line)


if __name__ == "__main__":
    main()
