"""Holds all of a GPU but so many bytes, so that a large card is a small one to everybody else.

A process of its own: each line that it reads is the number of bytes to leave free, and is answered with one JSON line;
it lets go when its input ends. `HeldCard` is the other side of it. It does not know who uses what is left.
"""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ANSWERED_WITHIN_S = 90.0
# What cudaMalloc gives comes in such pieces.
_PIECE_BYTES = 2 * 2**20


class HeldCard:
    """The process that holds the rest of the card.

    Attributes:
        gpu_uuid: the card, as NVML names it.
        name: the card's name.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        """Waits for its first answer."""
        self._process = process
        said = self._answer()
        self.gpu_uuid, self.name = str(said["gpu_uuid"]), str(said["name"])

    def leave_free(self, size_bytes: int) -> int:
        """Holds all but so many bytes; returns what CUDA says is free then."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{size_bytes}\n")
        self._process.stdin.flush()
        return int(self._answer()["free_bytes"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], ANSWERED_WITHIN_S)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            raise RuntimeError("the process that holds the card does not answer")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextlib.contextmanager
def held_card(environment: Mapping[str, str]) -> Iterator[HeldCard]:
    """A card held by a process with this environment, which says which it is; nothing is held before that is asked."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={key: value for key, value in environment.items() if key != "PYTORCH_CUDA_ALLOC_CONF"},
    )
    try:
        yield HeldCard(process)
    finally:
        process.kill()
        process.wait()


def hold() -> None:
    """The process itself."""
    import torch

    def say(**values: object) -> None:
        print(json.dumps(values), flush=True)

    torch.cuda.init()
    properties = torch.cuda.get_device_properties(0)
    held: list[torch.Tensor] = [torch.zeros(1, device="cuda:0")]  # the context is there before anything is counted
    say(gpu_uuid=f"GPU-{properties.uuid}", name=properties.name)
    for line in sys.stdin:
        held.clear()
        torch.cuda.empty_cache()
        wanted = int(line)
        free, _ = torch.cuda.mem_get_info(0)
        while (size := -(-(free - wanted) // _PIECE_BYTES) * _PIECE_BYTES) > 0:
            held.append(torch.empty(size, dtype=torch.uint8, device="cuda:0"))
            free, _ = torch.cuda.mem_get_info(0)
        say(free_bytes=free, held_bytes=sum(each.numel() for each in held))


if __name__ == "__main__":
    hold()
