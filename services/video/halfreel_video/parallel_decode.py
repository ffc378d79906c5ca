"""Chunks of frames decoded on several devices at once.

A chunk gives the same bytes wherever it is decoded, so that a replica that fails costs time alone. Knows nothing of
requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from halfreel_runtime.errors import HalfreelError
from halfreel_video.replica import Replica
from halfreel_video.svd import decode_chunk


def decode_chunks(
    pipeline: Any, latents: torch.Tensor, frame_count: int, replicas: Sequence[Replica]
) -> NDArray[np.uint8]:
    """Decodes the first chunks of latents: one here, and one more by each replica.

    Args:
        pipeline: as `decode_chunk` takes it.
        latents: of shape (1, frames, 4, height / 8, width / 8), all that is left.
        frame_count: of a chunk.
        replicas: those that can be used.

    Returns:
        As `decode_chunk`: the frames of as many chunks as were decoded, in their order, one at least.

    Raises:
        NanDetected, and what a shortage of memory here raises.
    """
    chunks = latents.split(frame_count, dim=1)
    under_way: list[tuple[Replica, Future[NDArray[np.uint8]]]] = []
    for replica, chunk in zip(replicas, chunks[1:], strict=False):
        try:
            given = chunk.to(replica.device, non_blocking=True)
        except Exception as error:
            replica.give_up(error)
            break
        under_way.append((replica, replica.start(partial(decode_chunk, replica, given))))
    try:
        frames = [decode_chunk(pipeline, chunks[0])]
    finally:
        for _, pending in under_way:
            pending.exception()  # waits: no thread goes on with this clip
    for replica, pending in under_way:
        failure = pending.exception()
        if isinstance(failure, HalfreelError):
            raise failure
        if failure is not None:
            replica.give_up(failure)
            break  # what comes after it is decoded again: frames are in order
        frames.append(pending.result())
    return np.concatenate(frames)
