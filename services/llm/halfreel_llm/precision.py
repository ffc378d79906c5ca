"""The arithmetic of the model: which dtype a setting means on a device.

Knows nothing of models; whether one of them is right in FP16 shows in `sampling.py`, which refuses numbers that are
not finite.
"""

from __future__ import annotations

from enum import StrEnum

import torch


class Precision(StrEnum):
    """What an operator can ask for."""

    AUTO = "auto"
    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


_DTYPES = {Precision.FP32: torch.float32, Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}


def choose_dtype(precision: Precision, *, on_gpu: bool) -> torch.dtype:
    """Returns the dtype for a precision; `auto` is FP16 on a GPU and FP32 on a CPU, where FP16 is slower."""
    if precision is Precision.AUTO:
        return torch.float16 if on_gpu else torch.float32
    return _DTYPES[precision]


def dtype_name(dtype: torch.dtype) -> str:
    """Returns the name that the contract uses: "float16", "bfloat16" or "float32"."""
    return str(dtype).removeprefix("torch.")
