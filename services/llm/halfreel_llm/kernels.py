"""The operations of a step on a GPU, as kernels of our own: each reads its inputs once, and knows its lengths itself.

Written in Triton, and compiled at the server's first start. Numbers add up in 32 bits. No kernel asks the host for
anything, so that a whole step can be captured in a CUDA graph. Knows tensors alone; `plain_kernels` holds the same
operations in PyTorch's words, and a test holds the two together.
"""

from __future__ import annotations

from halfreel_llm.attention_kernels import attend, split_count
from halfreel_llm.norm_kernels import gated, normed
from halfreel_llm.pick_kernel import pick
from halfreel_llm.product_kernels import few_products, vector_product
from halfreel_llm.prompt_kernels import attend_prompt, keep_prompt

__all__ = [
    "attend",
    "attend_prompt",
    "few_products",
    "gated",
    "keep_prompt",
    "normed",
    "pick",
    "split_count",
    "vector_product",
]
