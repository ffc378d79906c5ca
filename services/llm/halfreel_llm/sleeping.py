"""The language model asleep: its weights leave, its slots and its graphs are dropped, and all comes back as it was.

Knows no server, nor when it sleeps.
"""

from __future__ import annotations

from halfreel_llm.generation import TextModel
from halfreel_llm.graph_runner import GraphRunner
from halfreel_runtime.weights_host import HostedWeights


def sleeping_model(text_model: TextModel) -> HostedWeights:
    """Returns what can send the model to sleep and wake it, between two sessions of its batch."""
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
        on_sleep=drop,
        on_woken=rebuild,
    )
