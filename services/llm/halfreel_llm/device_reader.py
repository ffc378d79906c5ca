"""Tensors from a safetensors file straight to a GPU, as fast as the page cache gives them.

Several threads read into pinned buffers of their own while what they read before crosses to the device. Knows no model;
the file was opened and checked by safetensors before.
"""

from __future__ import annotations

import json
import math
import os
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from halfreel_llm.processors import processor_count

_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
# One core copies some 3 GB/s out of the page cache; a handful of them fill the bus. A piece is large enough that a
# system call a piece costs nothing, and small enough that the last one is soon over.
_THREADS = 8
_PIECE_BYTES = 16 * 2**20


@dataclass(frozen=True)
class _Piece:
    offset: int
    target: Tensor


def read_tensors(file: Path, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """Reads all tensors of a file, and yields them by name once all have arrived.

    Raises:
        OSError, ValueError: The file can't be read, or holds other than floating-point numbers.
    """
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
        begin = 8 + size
        tensors: dict[str, Tensor] = {}
        pieces: queue.SimpleQueue[_Piece] = queue.SimpleQueue()
        count = 0
        for name, entry in sorted(header.items(), key=lambda each: each[1].get("data_offsets", [0])[0]):
            if name == "__metadata__":
                continue
            if entry["dtype"] not in _DTYPES:
                raise ValueError(f"tensor {name!r} is {entry['dtype']}; floating-point numbers are read")
            tensor = torch.empty(entry["shape"], dtype=_DTYPES[entry["dtype"]], device=device)
            first, last = entry["data_offsets"]
            if last - first != math.prod(entry["shape"]) * tensor.element_size():
                raise ValueError(f"tensor {name!r} has another size than its shape")
            tensors[name] = tensor
            raw = tensor.view(-1).view(torch.uint8)
            for part in range(0, last - first, _PIECE_BYTES):
                pieces.put(_Piece(begin + first + part, raw[part : part + _PIECE_BYTES]))
                count += 1
        _read_pieces(opened.fileno(), pieces, min(_THREADS, processor_count(), max(1, count)), device)
    yield from tensors.items()


def _read_pieces(descriptor: int, pieces: queue.SimpleQueue[_Piece], threads: int, device: torch.device) -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            _Worker(descriptor, device).run(pieces)
        except BaseException as error:  # told by the thread that waits
            failures.append(error)

    workers = [threading.Thread(target=work, name=f"reader-{number}") for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if failures:
        raise failures[0]


class _Worker:
    """Two pinned buffers: one is read into while the other crosses."""

    def __init__(self, descriptor: int, device: torch.device) -> None:
        self._descriptor, self._on_gpu = descriptor, device.type == "cuda"
        self._buffers = [torch.empty(_PIECE_BYTES, dtype=torch.uint8, pin_memory=self._on_gpu) for _ in range(2)]
        self._stream = torch.cuda.Stream(device) if self._on_gpu else None
        self._crossed: list[torch.cuda.Event | None] = [None, None]

    def run(self, pieces: queue.SimpleQueue[_Piece]) -> None:
        turn = 0
        while True:
            try:
                piece = pieces.get_nowait()
            except queue.Empty:
                break
            crossed = self._crossed[turn]
            if crossed is not None:
                crossed.synchronize()
            buffer = self._buffers[turn][: piece.target.numel()]
            self._fill(buffer, piece.offset)
            with torch.cuda.stream(self._stream):
                piece.target.copy_(buffer, non_blocking=True)
                if self._stream is not None:
                    self._crossed[turn] = self._stream.record_event()
            turn = 1 - turn
        if self._stream is not None:
            self._stream.synchronize()

    def _fill(self, buffer: Tensor, offset: int) -> None:
        view = memoryview(buffer.numpy())
        done = 0
        while done < len(view):
            count = os.preadv(self._descriptor, [view[done:]], offset + done)
            if count == 0:
                raise OSError("the file ends before its tensors do")
            done += count
