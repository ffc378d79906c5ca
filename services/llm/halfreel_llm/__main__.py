"""The LLM server: `python -m halfreel_llm [--setting value ...]`; from top to bottom this is its architecture."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from halfreel_llm.processors import processor_count
from halfreel_llm.settings import SERVICE, LlmSettings
from halfreel_runtime.kernel_cache import keep_kernels
from halfreel_runtime.logs import configure_logs
from halfreel_runtime.server import Server
from halfreel_runtime.settings import load_settings
from halfreel_runtime.startup import clear_errors
from halfreel_runtime.tracing import start_tracing


def main(argv: list[str] | None = None) -> NoReturn:
    """Serves until told to stop; the exit code is not 0 where the model can't be loaded or its engine failed."""
    settings = load_settings(LlmSettings, SERVICE, sys.argv[1:] if argv is None else argv)
    configure_logs(settings.log_level, SERVICE)
    start_tracing(settings.trace_endpoint, SERVICE)

    # Read by the hub client and by torch when they are first imported, which is below: a misspelt setting is told
    # before that takes its seconds. Nothing is ever fetched; and segments that grow in place keep what the driver sees
    # close to what is used, for a KV cache grows with every token.
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    # Threads that wait for each other sleep instead of spinning, which would take the cores from the other servers.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    keep_kernels(os.environ, {"TRITON_CACHE_DIR": "kernels"})

    from transformers.utils import logging as transformers_logging

    # Its warnings are advice to programmers, written past the log, and so are its progress bars.
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with clear_errors():
        server = make_server(settings)
    server.main()


def make_server(settings: LlmSettings) -> Server:
    """Joins the parts; the model loads in the engine's thread from here on.

    Raises:
        InvalidArgument, FailedPrecondition: This machine has no such device.
    """
    import torch

    from halfreel.gpu.v1 import gpu_pb2_grpc
    from halfreel.llm.v1 import llm_pb2_grpc
    from halfreel_llm.batch_engine import BatchEngine
    from halfreel_llm.counting import RUNGS
    from halfreel_llm.served_model import guessed_bytes, load_served_model
    from halfreel_llm.service import LlmService
    from halfreel_llm.sleeping import sleeping_model
    from halfreel_runtime.device import find_device
    from halfreel_runtime.instruments import Instruments
    from halfreel_runtime.memory import MemoryMonitor
    from halfreel_runtime.memory_limit import MemoryLimit
    from halfreel_runtime.memory_service import WATCH_METHODS, MemoryService
    from halfreel_runtime.metrics import ServerMetrics
    from halfreel_runtime.plan import Profile
    from halfreel_runtime.sleeper import Sleeper
    from halfreel_runtime.suggestions import MemoryLimits

    # A core is left to the event loop, so that health and memory are answered while the model computes.
    torch.set_num_threads(settings.thread_count or max(1, processor_count() - 1))
    device = find_device(settings.device)
    limit = MemoryLimit.of(settings, device)
    limit.enforce()
    warn = MemoryLimits(settings.warn_threshold_ratio, limit.min_free_bytes)
    memory = MemoryMonitor(device, budget_bytes=limit.budget_bytes, limits=warn)
    instruments = Instruments(SERVICE, rungs=RUNGS)
    sleeper = Sleeper.of(
        settings,
        memory,
        service=SERVICE,
        capacity_bytes=limit.total_bytes - limit.min_free_bytes,
        instruments=instruments,
    )
    engine = BatchEngine(
        name="llm",
        max_waiting_count=settings.max_waiting_request_count,
        stall_s=settings.stall_s,
        observer=instruments,
        gate=sleeper,
    )
    service = LlmService(engine, memory, instruments, Profile(settings.memory_profile), sleeper)

    def prepare() -> None:
        model = load_served_model(settings, device, memory, limit)
        service.model_loaded(model)
        sleeper.model_loaded(sleeping_model(model.text_model, model.read_anew if device.kind == "cuda" else None))

    server = Server(settings, service=SERVICE, metrics=ServerMetrics(SERVICE, engine, memory, instruments))
    server.add(llm_pb2_grpc.add_LlmServiceServicer_to_server, service, "halfreel.llm.v1.LlmService", engine)
    server.add(
        gpu_pb2_grpc.add_MemoryServiceServicer_to_server,
        MemoryService(memory, engine, sleeper),
        "halfreel.gpu.v1.MemoryService",
        engine,
        watch_methods=WATCH_METHODS,
    )
    sleeper.guess(guessed_bytes(settings, device))
    engine.start(prepare)
    return server


if __name__ == "__main__":
    main()
