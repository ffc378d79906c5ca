"""Put a trained model among the package's weights, with its card and the curve of its losses.

    python models/pocket/train/publish.py glm build/glm --trained "one H200, 8 minutes"

What a card says of the model itself stands in cards/<name>.md; numbers are read off the files.
"""

import argparse
import csv
import hashlib
import json
import math
import shutil
import sys
from pathlib import Path

from safetensors import safe_open

WEIGHTS = Path(__file__).resolve().parent.parent / "halfreel_pocket" / "weights"
TEXTS = Path(__file__).parent / "cards"
_LEFT_OUT = ("checkpoint*", "*.log")
_WIDE, _HIGH, _MARGIN = 640, 240, 40


def main() -> None:
    """Copy the files, draw the losses, write the card."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("name", choices=("glm", "keyframe", "svd"))
    arguments.add_argument("folder", type=Path, help="what the training script wrote")
    arguments.add_argument("--before", type=Path, help="the folder of the training that this one went on from")
    arguments.add_argument("--trained", required=True, help="the machine, the time and the commands, in words")
    read = arguments.parse_args()
    target = WEIGHTS / read.name
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(read.folder, target, ignore=shutil.ignore_patterns(*_LEFT_OUT))
    for path in target.rglob("*.json"):
        forget_origin(path)
    if read.before:
        chain(read.before / "losses.csv", target / "losses.csv")
    with (target / "losses.csv").open(encoding="utf-8", newline="") as log:
        rows = [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(log)]
    (target / "losses.svg").write_text(curve(rows), encoding="utf-8")
    (target / "README.md").write_text(card(read.name, target, read.trained, rows), encoding="utf-8")
    sys.stdout.write(f"{target} {total_bytes(target)} bytes of safetensors\n")


def forget_origin(path: Path) -> None:
    """Take out of a configuration where on the training machine it was read from."""
    given = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(given, dict) and given.pop("_name_or_path", None) is not None:
        path.write_text(json.dumps(given, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def chain(before: Path, after: Path) -> None:
    """Put the losses of one training before those of the next, whose steps and seconds then count on."""
    first, second = (list(csv.reader(path.open(encoding="utf-8", newline=""))) for path in (before, after))
    steps, seconds = int(first[-1][0]), float(first[-1][1])
    moved = [[int(row[0]) + steps, round(float(row[1]) + seconds, 1), row[2]] for row in second[1:]]
    with after.open("w", encoding="utf-8", newline="") as log:
        csv.writer(log, lineterminator="\n").writerows([*first, *moved])


def card(name: str, folder: Path, trained: str, rows: list[tuple[int, float]]) -> str:
    """The model card: front matter, the model's own text, then figures read off the files."""
    weights = sorted(folder.rglob("*.safetensors"))
    lines = [
        "---",
        "license: apache-2.0",
        "---",
        f"# pocket-{name}",
        "",
        (TEXTS / f"{name}.md").read_text(encoding="utf-8").strip(),
        "",
        "## Training",
        f"{trained}. Steps: {rows[-1][0]}; loss at the end: {rows[-1][1]:.4f}.",
        "Nothing was downloaded: the data is drawn from `halfreel_pocket.world` and `halfreel_pocket.scripts`.",
        "",
        "![The loss over the steps, on a logarithmic scale](losses.svg)",
        "",
        "## Files",
        "| file | parameters | bytes | sha256 |",
        "|---|---|---|---|",
    ]
    for path in weights:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        lines.append(f"| {path.relative_to(folder)} | {parameters(path)} | {path.stat().st_size} | {digest} |")
    return "\n".join([*lines, "", "Licence: Apache-2.0, as all of Halfreel.", ""])


def parameters(path: Path) -> int:
    """Number of values in a safetensors file."""
    with safe_open(path, framework="numpy") as tensors:
        count = 0
        for key in tensors.keys():  # noqa: SIM118 - it is no mapping
            size = 1
            for extent in tensors.get_slice(key).get_shape():
                size *= extent
            count += size
        return count


def total_bytes(folder: Path) -> int:
    """Bytes of all safetensors files under `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def curve(rows: list[tuple[int, float]]) -> str:
    """The losses as an SVG: steps to the right, the logarithm of the loss upwards."""
    last = rows[-1][0]
    logs = [math.log10(max(loss, 1e-6)) for _, loss in rows]
    low, high = min(logs), max(logs)
    span = high - low or 1.0
    points = " ".join(
        f"{_MARGIN + step / last * (_WIDE - 2 * _MARGIN):.1f},"
        f"{_HIGH - _MARGIN - (value - low) / span * (_HIGH - 2 * _MARGIN):.1f}"
        for (step, _), value in zip(rows, logs, strict=True)
    )
    text = 'font-family="sans-serif" font-size="11" fill="#555"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDE} {_HIGH}">'
        f'<rect width="{_WIDE}" height="{_HIGH}" fill="#fff"/>'
        f'<polyline points="{points}" fill="none" stroke="#2456c0" stroke-width="1.5"/>'
        f'<text x="4" y="{_MARGIN}" {text}>{10**high:.3g}</text>'
        f'<text x="4" y="{_HIGH - _MARGIN}" {text}>{10**low:.3g}</text>'
        f'<text x="{_MARGIN}" y="{_HIGH - 12}" {text}>0</text>'
        f'<text x="{_WIDE - _MARGIN - 40}" y="{_HIGH - 12}" {text}>step {last}</text></svg>\n'
    )


if __name__ == "__main__":
    main()
