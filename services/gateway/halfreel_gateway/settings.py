"""What the gateway can be told. It does not know what the settings do."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator

from halfreel_gateway.channels import target
from halfreel_runtime.settings import CommaList, LocalPath, ServerSettings

SERVICE = "gateway"
LLM_SERVICE = "halfreel.llm.v1.LlmService"
VIDEO_SERVICE = "halfreel.video.v1.VideoService"


class GatewaySettings(ServerSettings):
    """The settings of the gateway; prefix HALFREEL_GATEWAY_ in the environment."""

    port: int = Field(7600, ge=0, le=65535, description="Port of the gRPC server; 0 takes any free one.")
    metrics_port: int = Field(
        7700, ge=0, le=65535, description="Port of /metrics, /livez and /readyz; 0 takes any free one."
    )
    data_dir: LocalPath = Field(
        Path("~/.local/share/halfreel"), description="Folder of clips, films and the embedded database."
    )
    database_url: str = Field(
        "", description="Database of films and jobs: a PostgreSQL URL; empty is a SQLite file in data_dir."
    )
    executor_id: str = Field(
        "gateway",
        pattern=r"^[A-Za-z0-9_.-]{1,64}$",
        description="Name of this gateway among those that share a database; a restart must have the same.",
    )
    llm_addresses: CommaList = Field(
        ("127.0.0.1:7601",), description="Language model servers: several IP addresses, or one DNS name, with ports."
    )
    video_addresses: CommaList = Field(
        ("127.0.0.1:7602",), description="Video servers: several IP addresses, or one DNS name, with ports."
    )
    model_ca_file: LocalPath | None = Field(
        None, description="CA certificates, PEM, for the model servers' certificates; with it they are called over TLS."
    )
    model_token_file: LocalPath | None = Field(
        None, description="File that holds the token shown to model servers, with the scopes generate and read."
    )
    model_certificate_file: LocalPath | None = Field(
        None, description="Certificate of the gateway, PEM, for model servers that ask for one."
    )
    model_key_file: LocalPath | None = Field(
        None, description="Key of model_certificate_file, PEM; nobody else may be able to read it."
    )
    scene_concurrency: int = Field(
        0, ge=0, le=256, description="Scenes rendered at once; 0 is one for each video server found at the start."
    )
    max_active_film_count: int = Field(
        64, ge=1, le=1000, description="Films that may be in the making at once; more are refused."
    )
    stall_s: float = Field(
        300.0, gt=0, le=86400, description="A model server that sends nothing for so long is asked anew."
    )
    min_free_disk_bytes: int = Field(
        256 * 2**20, ge=0, description="With less than this free in data_dir, new films are refused."
    )

    @field_validator("llm_addresses", "video_addresses")
    @classmethod
    def _addresses_go_together(cls, addresses: tuple[str, ...]) -> tuple[str, ...]:
        target(addresses)
        return addresses
