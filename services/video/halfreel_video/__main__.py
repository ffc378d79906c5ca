"""The video server: `python -m halfreel_video [--setting value ...]`; from top to bottom this is its architecture."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from halfreel_runtime.kernel_cache import keep_kernels
from halfreel_runtime.logs import configure_logs
from halfreel_runtime.settings import load_settings
from halfreel_runtime.startup import clear_errors
from halfreel_runtime.tracing import start_tracing
from halfreel_video.quiet import quiet_libraries
from halfreel_video.settings import SERVICE, VideoSettings


def main(argv: list[str] | None = None) -> NoReturn:
    """Runs the server until it is told to stop."""
    settings = load_settings(VideoSettings, SERVICE, sys.argv[1:] if argv is None else argv)
    configure_logs(settings.log_level, SERVICE)
    start_tracing(settings.trace_endpoint, SERVICE)

    # Read by the hub client and by torch when they are first imported, which is below. Nothing is ever fetched; and
    # segments that grow in place waste less of a GPU between the small allocations of a step and the large ones of
    # decoding: 15.5 against 28.2 GiB reserved for 25 frames of 1024 x 576.
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    # Threads that wait for each other sleep instead of spinning: on two cores that other processes use as well, a clip
    # took 2 s so and 24 s otherwise.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    keep_kernels(os.environ, {"TRITON_CACHE_DIR": "kernels"})
    quiet_libraries()

    import torch

    from halfreel.gpu.v1 import gpu_pb2, gpu_pb2_grpc
    from halfreel.video.v1 import video_pb2_grpc
    from halfreel_runtime.device import find_device
    from halfreel_runtime.engine import Engine
    from halfreel_runtime.instruments import Instruments
    from halfreel_runtime.memory import MemoryMonitor
    from halfreel_runtime.memory_limit import MemoryLimit
    from halfreel_runtime.memory_service import WATCH_METHODS, MemoryService
    from halfreel_runtime.metrics import ServerMetrics
    from halfreel_runtime.priority import give_way
    from halfreel_runtime.server import Server
    from halfreel_runtime.sleeper import Sleeper
    from halfreel_runtime.suggestions import MemoryLimits
    from halfreel_runtime.weights_host import HostedWeights
    from halfreel_video.counting import RUNGS
    from halfreel_video.events import Event
    from halfreel_video.folder import is_text_to_video
    from halfreel_video.fused import has_kernels
    from halfreel_video.model import find_parallel_devices, load_model, warm_up
    from halfreel_video.service import VideoService
    from halfreel_video.sleeping import SleepingVideo, guessed_bytes
    from halfreel_video.spare_time import SpareTime
    from halfreel_video.text_model import load_text_model, warm_up_text
    from halfreel_video.text_service import TextVideoService

    if settings.thread_count:
        torch.set_num_threads(settings.thread_count)
    torch.backends.cudnn.deterministic = True  # the same seed gives the same bytes
    with clear_errors():
        device = find_device(settings.device)
        parallel_devices = find_parallel_devices(settings, device)
        limit = MemoryLimit.of(settings, device)
    limit.enforce()
    warn = MemoryLimits(settings.warn_threshold_ratio, limit.min_free_bytes)
    memory = MemoryMonitor(device, budget_bytes=limit.budget_bytes, limits=warn, other_devices=parallel_devices)
    instruments = Instruments(SERVICE, rungs=RUNGS)
    with clear_errors():
        sleeper = Sleeper.of(
            settings,
            memory,
            service=SERVICE,
            capacity_bytes=limit.total_bytes - limit.min_free_bytes,
            instruments=instruments,
        )
    spare_time = SpareTime(sleeper, awake=lambda: sleeper.state == gpu_pb2.MODEL_STATE_AWAKE)
    engine: Engine[Event] = Engine(
        name="video",
        max_waiting_count=settings.max_waiting_request_count,
        stall_s=settings.stall_s,
        observer=instruments,
        gate=spare_time,
    )
    video = VideoService(engine, memory, settings, instruments, sleeper)
    text_to_video = TextVideoService(engine, memory, settings, instruments)
    from_words = is_text_to_video(settings.model)

    def prepare_text_to_video() -> None:
        give_way(device)
        with memory.phase("load"):
            model = load_text_model(settings, device)
        text_to_video.model_loaded(model)
        warm_up_text(model)
        memory.clear()
        sleeper.model_loaded(HostedWeights(model.parts, torch.device(device.torch_name)))

    def prepare() -> None:
        give_way(device)
        with memory.phase("load"):
            model = load_model(settings, device, limit.allocator_bytes(memory.report()), parallel_devices)
        video.model_loaded(model)
        warm_up(model, video.usual_levers())
        memory.clear()
        sleeper.model_loaded(SleepingVideo(model))
        if settings.fuse_blocks and has_kernels(model.layout.device):
            spare_time.spend(video.check_next)

    server = Server(settings, service=SERVICE, metrics=ServerMetrics(SERVICE, engine, memory, instruments))
    served = text_to_video if from_words else video
    server.add(video_pb2_grpc.add_VideoServiceServicer_to_server, served, "halfreel.video.v1.VideoService", engine)
    server.add(
        gpu_pb2_grpc.add_MemoryServiceServicer_to_server,
        MemoryService(memory, engine, sleeper),
        "halfreel.gpu.v1.MemoryService",
        engine,
        watch_methods=WATCH_METHODS,
    )
    sleeper.guess(0 if from_words else guessed_bytes(settings))
    engine.start(prepare_text_to_video if from_words else prepare)
    server.main()


if __name__ == "__main__":
    main()
