"""The settings every server has, and the base of each service's own.

It does not know where values come from: `settings` reads YAML, environment and flags.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from halfreel_runtime.budget import BudgetText, BytesText


def _split(value: object) -> object:
    """A list given as text, as in an environment variable: parts between commas."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _expand(value: object) -> object:
    return Path(value).expanduser() if isinstance(value, str) else value


# Several words: a list in YAML, "a,b" in the environment and in a flag.
CommaList = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
# A path of this machine; "~" is the home folder.
LocalPath = Annotated[Path, BeforeValidator(_expand)]


class ServerSettings(BaseSettings):
    """What every server can be told. Built directly, it takes nothing from the environment."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    host: str = Field("127.0.0.1", description="Address to listen on, for gRPC and for metrics.")
    port: int = Field(0, ge=0, le=65535, description="Port of the gRPC server; 0 takes any free one.")
    metrics_port: int = Field(
        0, ge=0, le=65535, description="Port of /metrics, /livez and /readyz; 0 takes any free one."
    )
    port_file: LocalPath | None = Field(
        None, description="File to write the ports and the process id into, as JSON, once the server listens."
    )
    tls_certificate_file: LocalPath | None = Field(
        None, description="Certificate of the server, PEM, for gRPC and metrics; read again when it changes."
    )
    tls_key_file: LocalPath | None = Field(
        None, description="Key of tls_certificate_file, PEM; nobody else may be able to read it."
    )
    tls_client_ca_file: LocalPath | None = Field(
        None, description="CA certificates, PEM: gRPC clients must show a certificate signed by one of them."
    )
    tokens_file: LocalPath | None = Field(
        None, description="Tokens that calls must show one of, as `halfreel tokens` writes them; read again."
    )
    allow_insecure_listen: bool = Field(
        False, description="Allows a host other than loopback although TLS or tokens are missing."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    trace_endpoint: str = Field(
        "",
        pattern=r"^(https?://[^\s/@]+:\d{1,5})?$",
        description="Collector that traces are sent to, by OTLP over gRPC, such as http://127.0.0.1:4317; empty: none.",
    )
    max_receive_bytes: int = Field(
        20 * 2**20, ge=2**16, le=2**28, description="Largest request that is taken (an image travels in one)."
    )
    grace_s: float = Field(
        30.0, ge=0, le=86400, description="Time that running requests get to finish when the server is told to stop."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Values come from the caller alone, so that a test is not changed by the shell it runs in."""
        return (init_settings,)


class ModelServerSettings(ServerSettings):
    """What every server that owns a model can be told besides."""

    device: str = Field("auto", description="What the model runs on: auto, cpu, cuda:N or GPU-uuid.")
    max_waiting_request_count: int = Field(
        16, ge=0, le=1024, description="Requests that may wait while another runs; more are refused."
    )
    stall_s: float = Field(
        60.0, gt=0, le=86400, description="A running request without progress for so long is hung; the server restarts."
    )
    memory_budget: BudgetText = Field(
        "none", description="Most memory of the device that this server takes: 12GiB, 80% or none."
    )
    min_free_memory: BytesText = Field(
        "0", description="Memory of the device that must stay free for others; requests that need it are refused."
    )
    memory_profile: Literal["auto", "saver", "balanced", "quality"] = Field(
        "auto",
        description="Memory against time where a request does not say: auto is the fastest way that fits, saver the "
        "least memory, balanced all on the device, quality more precise arithmetic where there is room.",
    )
    warn_threshold_ratio: float = Field(
        0.95,
        ge=0,
        le=1,
        description="Part of the budget, or of the device, in use from which memory is short; 0: never.",
    )
    clear_memory_before: bool = Field(False, description="Gives cached memory back to the device before a request.")
    clear_memory_after: bool = Field(False, description="Gives cached memory back to the device after a request.")
    idle_sleep_s: float = Field(
        0.0, ge=0, le=86400, description="A model that nobody asked for so long leaves the device; 0 for never."
    )
    turns: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Whether servers on one GPU have their models on it in turns: auto is where they don't all fit.",
    )
    turns_dir: LocalPath | None = Field(
        None,
        description="Folder by which servers on one GPU take turns, theirs alone; none is XDG_RUNTIME_DIR/halfreel.",
    )
    turn_s: float = Field(
        5.0, ge=0, le=3600, description="Time that a server with requests waiting keeps its turn from one that asks."
    )
