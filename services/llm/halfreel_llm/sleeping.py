"""The language model asleep: its weights leave, its slots and its graphs are dropped, and all comes back as it was.

Knows no server, nor when it sleeps.
"""

from __future__ import annotations

from collections.abc import Callable

from halfreel_llm.generation import TextModel
from halfreel_llm.graph_runner import GraphRunner
from halfreel_llm.network import Network
from halfreel_runtime.weights_host import HostedWeights


def sleeping_model(text_model: TextModel, read_anew: Callable[[], Network] | None = None) -> HostedWeights:
    """Returns what can send the model to sleep and wake it, between two sessions of its batch.

    Args:
        text_model: The model.
        read_anew: Reads its network once more, for a host that has no memory to keep it in.
    """
    runner, cache = text_model.runner, text_model.cache
    on_gpu = text_model.device.type == "cuda"

    def drop() -> None:
        text_model.batch.forget()
        if isinstance(runner, GraphRunner):
            runner.release()

    def rebuild() -> None:
        if isinstance(runner, GraphRunner):
            runner.capture()

    return HostedWeights(
        [text_model.network],
        text_model.device,
        # A CPU gives a page of the cache only when it is written: there it holds next to nothing, and stays.
        scratch=[cache.keys, cache.values] if on_gpu else [],
        reload=None if read_anew is None else lambda: [read_anew()],
        on_sleep=drop,
        on_woken=rebuild,
    )
