"""The settings of the video server, beside those every model server has."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from halfreel_runtime.settings import CommaList, ModelServerSettings

SERVICE = "video"


class VideoSettings(ModelServerSettings):
    """What the video server can be told."""

    port: int = Field(7602, ge=0, le=65535, description="Port of the gRPC server; 0 takes any free one.")
    metrics_port: int = Field(
        7702, ge=0, le=65535, description="Port of /metrics, /livez and /readyz; 0 takes any free one."
    )
    model: str = Field(
        "pocket",
        description="Image-to-video or text-to-video model: pocket, a local folder, or a hub id in the local cache.",
    )
    keyframe_model: str = Field(
        "pocket",
        description="Text-to-image model that draws first pictures: pocket, a local folder, or a hub id in the "
        "local cache; not loaded beside a text-to-video model.",
    )
    precision: Literal["auto", "fp32", "fp16", "bf16"] = Field(
        "auto",
        description="Arithmetic of all models; auto is fp16 on a GPU (bf16 where fp16 is known to fail), and "
        "fp32 on a CPU.",
    )
    fuse_blocks: bool = Field(
        True,
        description="Whether a GPU runs an image-to-video model's blocks by kernels of our own, in fewer passes over "
        "memory, once these were tried in spare moments; and whether attention kernels are chosen by a stopwatch at "
        "the start. On an H200 a step took 362 instead of 590 ms, and decoding a quarter less memory.",
    )
    parallel_devices: CommaList = Field(
        (),
        description="Further GPUs of the same make, as `device` names one, on which each clip of an image-to-video "
        "model is computed beside it: the halves of guidance on two devices, chunks of frames on all. Guidance then "
        "has the bytes of the lever split_guidance.",
    )
    max_width_px: int = Field(
        0, ge=0, le=2048, description="Widest clip; 0 takes four times the model's own width, 2048 at most."
    )
    max_height_px: int = Field(
        0, ge=0, le=2048, description="Highest clip; 0 takes four times the model's own height, 2048 at most."
    )
    max_frame_count: int = Field(
        1800, ge=2, le=10_000, description="Longest clip in frames; above the model's own length it is chained."
    )
    thread_count: int = Field(
        0, ge=0, le=256, description="Threads of the CPU for one model operation; 0 leaves it to torch."
    )
