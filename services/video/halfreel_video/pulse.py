"""A job's sign of life from inside a model's forward pass, where a slow device may stay for minutes.

Knows nothing of what the model computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from halfreel_runtime.cancel import CancelToken


class Pulse:
    """Looks at the running job's token after every block of the pipelines' modules.

    So a step that takes minutes is no stall to the watchdog, and a job that nobody waits for stops within a block.
    """

    def __init__(self, *pipelines: Any) -> None:
        """Hooks into every block: every member of a list of modules in any part."""
        self._token: CancelToken | None = None
        blocks = {
            block
            for pipeline in pipelines
            for part in pipeline.components.values()
            if isinstance(part, torch.nn.Module)
            for blocks in part.modules()
            if isinstance(blocks, torch.nn.ModuleList)
            for block in blocks
        }
        for block in blocks:
            block.register_forward_hook(self._after_block)

    @contextmanager
    def of(self, token: CancelToken) -> Iterator[None]:
        """Serves one job; what its token raises comes out of the forward pass."""
        self._token = token
        try:
            yield
        finally:
            self._token = None

    def _after_block(self, *_: Any) -> None:
        if self._token is not None:
            self._token.raise_if_cancelled()
