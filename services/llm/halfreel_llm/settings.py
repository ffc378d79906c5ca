"""The settings of the language-model server, beside those every model server has."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from halfreel_runtime.settings import ModelServerSettings

SERVICE = "llm"

Precision = Literal["auto", "fp32", "fp16", "bf16", "int8"]


class LlmSettings(ModelServerSettings):
    """What the language-model server can be told."""

    port: int = Field(7601, ge=0, le=65535, description="Port of the gRPC server; 0 takes any free one.")
    metrics_port: int = Field(
        7701, ge=0, le=65535, description="Port of /metrics, /livez and /readyz; 0 takes any free one."
    )
    model: str = Field("pocket", description="Chat model: pocket, a local folder, or a hub id in the local cache.")
    precision: Precision = Field(
        "auto",
        description="Arithmetic of the model; auto is fp16 on a GPU and fp32 on a CPU; int8: auto with 8-bit weights.",
    )
    context_token_count: int = Field(
        0, ge=0, le=2**20, description="Tokens that prompt and reply may have together; 0 takes all the model can."
    )
    slot_count: int = Field(
        0, ge=0, le=256, description="Requests that run at once, each with a KV cache of the whole context; 0 takes 8."
    )
    thread_count: int = Field(
        0, ge=0, le=256, description="Threads of the CPU for one model operation; 0 takes all cores but one."
    )
