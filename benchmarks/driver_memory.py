"""Do the servers' own memory figures agree with the driver's? Runs tests/gpu, and keeps what they measured.

    python benchmarks/driver_memory.py [--out FILE] [-k EXPRESSION]

ChatGLM3-6B, SVD-XT and sd-turbo at real size with random weights, each server a process of its own. The tests hold peak
reserved plus context against the bytes that NVML saw taken; this script gathers the figures that they print.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "transformers", "diffusers", "grpcio", "nvidia-ml-py", "av")
MIB = 2**20


def run_tests(expression: str | None, log: Path | None) -> tuple[int, float, str]:
    """Runs tests/gpu; returns pytest's exit code, the seconds it took and all it printed."""
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-s", "-v", "--forbid-skips", "gpu"]
    command += ["-k", expression] if expression else []
    began = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    lines = []
    with (log or Path("/dev/null")).open("w") as file:
        for line in process.stdout:
            print(line, end="", flush=True)
            file.write(line)
            file.flush()
            lines.append(line)
    return process.wait(), time.monotonic() - began, "".join(lines)


def measured(output: str) -> list[dict[str, Any]]:
    """The JSON objects that tests printed: a line of their own, or after pytest's name of the test."""
    found = []
    for line in output.splitlines():
        start = line.find("{")
        if start < 0 or not line.rstrip().endswith("}") or '"device"' not in line:
            continue
        try:
            found.append(json.loads(line[start:]))
        except ValueError:
            continue
    return found


def installed(name: str) -> str | None:
    """The version of a package, where it is there."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def main() -> None:
    """Prints one JSON line last, and writes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="result file; the raw log goes beside it")
    parser.add_argument("--commit", default="", help="of the tree, where git is not there to say")
    parser.add_argument("-k", dest="expression", help="as pytest's")
    flags = parser.parse_args()
    code, seconds, output = run_tests(flags.expression, flags.out.with_suffix(".log") if flags.out else None)
    figures: dict[str, Any] = {"exit_code": code, "seconds": round(seconds, 1)}
    card = "cpu"
    for each in measured(output):
        name = each.get("test") or ("video_real_size" if "frame_count" in each else "unnamed")
        card = each["device"]
        said = each["peak_reserved_bytes"] + each["context_bytes"]
        seen = each.get("seen_bytes", each.get("device_peak_bytes"))
        figures[name] = each | {"said_bytes": said, "seen_bytes": seen, "difference_mib": round((said - seen) / MIB, 1)}
    commit = (
        flags.commit
        or subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
        ).stdout.strip()
    )
    result = {
        "command": "python " + " ".join(["benchmarks/driver_memory.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "card": card,
        "commit": commit,
        "versions": {"python": platform.python_version()} | {name: installed(name) for name in PACKAGES},
        "figures": figures,
    }
    if flags.out:
        flags.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    sys.exit(code)


if __name__ == "__main__":
    main()
