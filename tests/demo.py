"""The README's first command, as the Makefile has it."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def demo_command(folder: Path, *extra: str) -> list[str]:
    """The recipe of `make demo`, with this environment's Python and the folder's own data."""
    recipe = re.search(r"^demo:.*\n\t@(.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    expected = '$(BIN)/halfreel make "$(IDEA)" --output "$(FILM)" --local --data-dir .halfreel'
    assert recipe.group(1) == expected
    idea = "a red circle moving over a blue sky, then a green square in the snow"
    film = str(folder / "film.mp4")
    return [sys.executable, "-m", "halfreel_client", "make", idea, "--output", film, "--local",
            "--data-dir", str(folder / "data"), *extra]  # fmt: skip


def environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("HALFREEL_")}
