"""The attention kernels of a UNet: PyTorch's own, whole or in slices, or xFormers' where a probe found that they work.

Knows nothing of what they cost.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor2_0, XFormersAttnProcessor

from halfreel_video.attention_kernels import ChosenAttention, kept_kernels
from halfreel_video.levers import SDPA, SLICED, XFORMERS

SLICE_COUNT = 8  # queries, keys and values of an eighth of the batch at a time
# Rows of the classes of shape in SVD's UNet at 1024x576 and 25 frames, both guidance halves: batch, tokens, heads, and
# the size of a head. Temporal attention has one row for each pixel, which overflows the grid of some kernels.
_PROBES = ((50, 9216, 5, 64), (18432, 25, 5, 64))


class SlicedAttention:
    """Runs PyTorch's attention over slices of the batch, so that queries, keys and values are never there whole."""

    def __init__(self, count: int = SLICE_COUNT) -> None:
        self._count = count
        self._whole = AttnProcessor2_0()

    def __call__(
        self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor | None = None, **named: Any
    ) -> torch.Tensor:
        """As the processors of diffusers; rows of a batch do not look at each other."""
        batch = len(hidden_states)
        size = -(-batch // self._count)
        if hidden_states.ndim != 3 or size == batch or any(value is not None for value in named.values()):
            whole: torch.Tensor = self._whole(attn, hidden_states, encoder_hidden_states, **named)
            return whole
        joined = torch.empty_like(hidden_states)
        for start in range(0, batch, size):
            context = None if encoder_hidden_states is None else encoder_hidden_states[start : start + size]
            joined[start : start + size] = self._whole(attn, hidden_states[start : start + size], context)
        return joined


class Attention:
    """The attention backend of one UNet, and which backends there are on this device."""

    def __init__(self, unet: Any, device: torch.device, dtype: torch.dtype, *, choose_kernels: bool) -> None:
        """Probes xFormers once and, if wanted, which of PyTorch's kernels are the fastest."""
        self._unet = unet
        self.kernels = kept_kernels(device, dtype) if choose_kernels else {}
        self.backend = SDPA
        if self.kernels:
            unet.set_attn_processor(self._processor(SDPA))
        self.xformers_problem = xformers_problem(device, dtype)

    def use(self, backend: str) -> str:
        """Switches to a backend, and returns the one in use: xFormers where it doesn't work is PyTorch's own."""
        if backend == XFORMERS and self.xformers_problem:
            backend = SDPA
        if backend != self.backend:
            self._unet.set_attn_processor(self._processor(backend))
            self.backend = backend
        return backend

    def _processor(self, backend: str) -> Any:
        if backend == SDPA and self.kernels:
            return ChosenAttention(self.kernels)
        return _PROCESSORS[backend]()


# Named outright: `set_default_attn_processor` would pick the naive attention, which takes 86 GiB for a clip.
_PROCESSORS: dict[str, Any] = {SDPA: AttnProcessor2_0, XFORMERS: XFormersAttnProcessor, SLICED: SlicedAttention}


def xformers_problem(device: torch.device, dtype: torch.dtype) -> str:
    """Why xFormers can't be used here; empty where it can. Runs its kernel on real classes of shape."""
    if device.type != "cuda":
        return "xformers needs a GPU"
    if importlib.util.find_spec("xformers") is None:
        return "xformers is not installed"
    try:
        from xformers.ops import memory_efficient_attention  # type: ignore[import-not-found]  # not installed here

        for batch, tokens, heads, size in _PROBES:
            rows = torch.randn(batch, tokens, heads, size, device=device, dtype=dtype)
            if not bool(torch.isfinite(memory_efficient_attention(rows, rows, rows)).all()):
                return f"xformers gives no numbers for {batch} rows of {tokens} tokens"
    except Exception as error:  # a library built for another CUDA raises whatever it likes
        return f"xformers does not work here: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    return ""
