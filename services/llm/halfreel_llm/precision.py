"""The arithmetic of the model: which dtype a setting means on a device.

Knows nothing of models; whether one of them is right in FP16 shows in `sampling.py`, which refuses numbers that are
not finite.
"""

from __future__ import annotations

import torch

from halfreel_llm.settings import Precision

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def choose_dtype(precision: Precision, *, on_gpu: bool) -> torch.dtype:
    """Returns the arithmetic for a precision; `auto` is FP16 on a GPU and FP32 on a CPU, where FP16 is slower.

    So is that of "int8", whose weights alone are kept in 8 bits.
    """
    if precision in ("auto", "int8"):
        return torch.float16 if on_gpu else torch.float32
    return _DTYPES[precision]


def dtype_name(dtype: torch.dtype) -> str:
    """Returns the name that the contract uses: "float16", "bfloat16" or "float32"."""
    return str(dtype).removeprefix("torch.")
