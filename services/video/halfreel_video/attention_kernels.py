"""Which of PyTorch's attention kernels is the fastest for each class of shape of SVD's UNet, by a stopwatch at start.

Spatial attention has few rows of thousands of keys, temporal attention thousands of rows of few keys: one kernel is
seldom the best for both. All give the same up to rounding. A choice is kept in a file, so that a restart gives the same
bytes. Knows nothing of models.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

# In PyTorch's own order; the last takes any shape.
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
FEW_KEYS = 64  # a clip has fewer frames at once, and its pictures more cells
# Of SVD's UNet at 1024x576 and 25 frames, both guidance halves: batch, heads, tokens, and the size of a head. Temporal
# attention has one row for each cell.
SHAPES = {"spatial": (50, 5, 9216, 64), "temporal": (18432, 5, 25, 64)}
# Another kernel than PyTorch's own choice must be so much faster: noise decides nothing.
_GAIN = 0.95
_kernels = threading.Lock()
_TOLERANCE = 2e-2  # of the result's length, in half precision


class ChosenAttention:
    """PyTorch's attention by a kernel for spatial and one for temporal attention; where it can't, by any other."""

    def __init__(self, kernels: Mapping[str, str]) -> None:
        """Takes a kernel's name for each class of shape that is not left to PyTorch."""
        self._plain = AttnProcessor2_0()
        self._orders = {kind: _order(name) for kind, name in kernels.items()}

    def __call__(
        self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor | None = None, **named: Any
    ) -> torch.Tensor:
        """As the processors of diffusers."""
        few = hidden_states.shape[1] <= FEW_KEYS
        order = self._orders.get("temporal" if few else "spatial")
        # Which kernels there are is the whole process's: threads that tell several devices take turns.
        with _kernels, contextlib.nullcontext() if order is None else sdpa_kernel(order, set_priority=True):
            result: torch.Tensor = self._plain(attn, hidden_states, encoder_hidden_states, **named)
        return result


def _order(first: str) -> list[SDPBackend]:
    return [KERNELS[first], *(kernel for name, kernel in KERNELS.items() if name != first)]


def fastest_kernels(
    device: torch.device,
    dtype: torch.dtype,
    *,
    shapes: Mapping[str, tuple[int, ...]] = SHAPES,
    clock: Callable[[Callable[[], object]], float] | None = None,
) -> dict[str, str]:
    """Times every kernel on every class of shape; a class where PyTorch's own choice is as good has none.

    Raises:
        torch.OutOfMemoryError: there is no room for the tensors of one attention.
    """
    chosen = {}
    for kind, shape in shapes.items():
        seconds = kernel_seconds(device, dtype, shape, clock=clock)
        best = min((name for name in seconds if name != "own"), key=seconds.__getitem__, default="own")
        if seconds[best] < _GAIN * seconds["own"]:
            chosen[kind] = best
    return chosen


def kernel_seconds(
    device: torch.device,
    dtype: torch.dtype,
    shape: Sequence[int],
    *,
    clock: Callable[[Callable[[], object]], float] | None = None,
) -> dict[str, float]:
    """Seconds of every kernel that takes a shape and gives the right numbers, and of PyTorch's own choice ("own")."""
    clock = clock or _clock(device)
    draws = torch.Generator(device).manual_seed(0)
    # As the projections give them: heads lie side by side.
    batch, heads, tokens, size = shape
    query, key, value = (
        torch.randn(batch, tokens, heads, size, generator=draws, device=device, dtype=dtype).transpose(1, 2)
        for _ in range(3)
    )

    def attend() -> torch.Tensor:
        return scaled_dot_product_attention(query, key, value)

    expected = attend()
    seconds = {"own": clock(attend)}
    for name, kernel in KERNELS.items():
        if name == "math" and tokens > FEW_KEYS:
            continue  # would write the scores of all keys: 42 GB
        try:
            with sdpa_kernel(kernel):
                if (attend() - expected).norm() <= _TOLERANCE * expected.norm():
                    seconds[name] = clock(attend)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # it does not take this shape, or does not work here
            continue
    return seconds


def kept_kernels(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """The choice for a GPU, from a file where it was made before; nothing for a CPU and for full precision.

    The file lies where compiled code is kept, in a folder that nobody else can write to; where there is none, PyTorch
    chooses: a choice that a restart could change would change clips.
    """
    folder = os.environ.get("TRITON_CACHE_DIR")
    if device.type != "cuda" or dtype == torch.float32 or not folder:
        return {}
    name = re.sub(r"[^A-Za-z0-9.]+", "_", f"{torch.cuda.get_device_name(device)}-{torch.__version__}-{dtype}")
    chosen = kept(Path(folder) / f"attention-{name}.json", lambda: fastest_kernels(device, dtype))
    torch.cuda.empty_cache()
    return chosen


def kept(path: Path, choose: Callable[[], dict[str, str]]) -> dict[str, str]:
    """What a file says, or else a new choice, which is then written to it; none where that can't be."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict) and all(kind in SHAPES and name in KERNELS for kind, name in found.items()):
            return found
    except (OSError, ValueError):
        pass
    try:
        chosen = choose()
    except torch.OutOfMemoryError:
        return {}
    written = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        written.write_text(json.dumps(chosen), encoding="utf-8")
        written.replace(path)
    except OSError:  # the next start might choose otherwise
        return {}
    return chosen


def _clock(device: torch.device) -> Callable[[Callable[[], object]], float]:
    def clock(work: Callable[[], object]) -> float:
        """The least of three, after one that counts for nothing."""
        seconds = []
        for _ in range(4):
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            began_at = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - began_at)
        return min(seconds[1:])

    return clock
