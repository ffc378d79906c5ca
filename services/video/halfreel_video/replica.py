"""A replica of a video pipeline's UNet and VAE on another device, run by a thread of its own.

The thread only tells its device what to do, as the engine's thread does for the first one, so that both are told at
once; whoever hands work over copies tensors there and back. Knows nothing of clips.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import torch

from halfreel_runtime.failures import release_frames
from halfreel_video.attention_kernels import ChosenAttention
from halfreel_video.fused import kernels_for
from halfreel_video.fused_blocks import FusedBlocks
from halfreel_video.shortage import is_shortage
from halfreel_video.weights import FlatWeights

T = TypeVar("T")
_logger = logging.getLogger(__name__)


class Replica:
    """Stands in for the pipeline, as far as denoising and decoding go, on its own device.

    Attributes:
        device: where it is.
        unet, vae: of the same classes, with the same weights, in the same arithmetic.
        components: both, as a pipeline has them.
        fused: its blocks in fewer passes, tried on its device.
        problem: why it is not used; empty while it can be.
    """

    def __init__(self, svd: Any, device: torch.device, attention_kernels: dict[str, str]) -> None:
        """Builds the modules; weights come with `load`.

        Args:
            svd: the StableVideoDiffusionPipeline.
            device: of the same make as the pipeline's, or its results differ by rounding.
            attention_kernels: those that the pipeline's attention runs by.
        """
        self.device = device
        self._sources = {"unet": svd.unet, "vae": svd.vae}
        self.components = {name: _empty_like(part) for name, part in self._sources.items()}
        self.unet, self.vae = self.components["unet"], self.components["vae"]
        if attention_kernels:
            self.unet.set_attn_processor(ChosenAttention(attention_kernels))
        self._weights = FlatWeights(self.components.values())
        self._buffer: torch.Tensor | None = None
        self.fused = FusedBlocks(self, lambda: kernels_for(device))
        self.problem = ""
        self._short = False
        self._tasks: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        # A daemon: a device that hangs must not keep the process from ending.
        threading.Thread(target=self._work, name=f"replica-{device}", daemon=True).start()

    @property
    def size_bytes(self) -> int:
        """Bytes of weights that are on its device now."""
        return self._weights.size_bytes if self._buffer is not None else 0

    @property
    def usable(self) -> bool:
        """Whether it is loaded, and did not fail."""
        return self._buffer is not None and not self.problem

    def load(self) -> None:
        """Copies the pipeline's weights, which must be as they were loaded, wherever they are.

        A shortage of memory leaves it out until it is asked again; any other failure for good.
        """
        if self._buffer is not None or (self.problem and not self._short):
            return
        try:
            buffer = torch.empty(self._weights.size_bytes, dtype=torch.uint8, device=self.device)
            self._weights.point_to(buffer)
            self._buffer, self.problem = buffer, ""
            for name, source in self._sources.items():
                mine = _tensors(self.components[name])
                for key, tensor in _tensors(source).items():
                    mine[key].data.copy_(tensor.data)
            self._wait()
        except Exception as error:
            self.give_up(error)

    def drop(self) -> None:
        """Leaves the device."""
        if self._buffer is None:
            return
        # Memory that nothing writes to takes nothing but addresses.
        self._weights.point_to(torch.empty(self._weights.size_bytes, dtype=torch.uint8))
        self._buffer = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def give_up(self, error: BaseException) -> None:
        """Is used no more, for an error: until the next `load` where memory was short."""
        self._short = isinstance(error, Exception) and is_shortage(error)
        lines = str(error).strip().splitlines()
        self.problem = f"{type(error).__name__}: {lines[0] if lines else ''}"
        release_frames(error)
        _logger.warning("replica_left_out", extra={"device": str(self.device), "reason": self.problem})
        with contextlib.suppress(RuntimeError):  # of a device that is lost nothing can be freed
            self.drop()

    def start(self, work: Callable[[], T]) -> Future[T]:
        """Has work done by its thread, with its device as the present one, without gradients."""
        future: Future[T] = Future()
        self._tasks.put((future, work))
        return future

    def check_next(self) -> bool | None:
        """Tries a piece more of its fused blocks; tells whether there is more, None where it can't be used yet."""
        if not self.usable:
            return None if self._short or not self.problem else False
        self.start(self.fused.check_next).result()
        return self.fused.is_pending

    def _work(self) -> None:
        with (
            torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext(),
            torch.no_grad(),
        ):
            while True:
                future, work = self._tasks.get()
                try:
                    future.set_result(work())
                except BaseException as error:  # whoever waits is told
                    future.set_exception(error)
                del future, work  # and what they hold

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _empty_like(part: Any) -> Any:
    """A module of the same make, with weights of no value that take no memory yet."""
    with torch.device("meta"):
        empty = type(part).from_config(part.config)
    empty = torch.nn.Module.to(empty, next(part.parameters()).dtype).to_empty(device="cpu")
    return empty.eval().requires_grad_(False)


def _tensors(part: Any) -> dict[str, torch.Tensor]:
    return {**dict(part.named_parameters()), **dict(part.named_buffers())}
