"""The typed client of Halfreel: one sentence in, a film out.

    from halfreel_client import Client

    with Client("127.0.0.1:7600") as client:
        film = client.create_film("a red circle over the sea")
        for event in client.watch(film.film_id):
            print(event.what)
        client.save_video(film.film_id, "film.mp4")

`AsyncClient` has the same methods for asyncio; `LlmClient` and `VideoClient` call a model server directly.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from halfreel_client.aio_client import AsyncClient
    from halfreel_client.aio_model_clients import AsyncLlmClient, AsyncVideoClient
    from halfreel_client.client import Client
    from halfreel_client.clip import (
        ClipCompleted,
        ClipEvent,
        ClipRequest,
        LastFrameChunk,
        Planned,
        Preview,
        Stage,
        StageDuration,
        StageStarted,
        Step,
        VideoChunk,
        VideoModel,
    )
    from halfreel_client.credentials import Credentials, CredentialsError
    from halfreel_client.errors import (
        AlreadyExists,
        Cancelled,
        DataLoss,
        DeadlineExceeded,
        FailedPrecondition,
        HalfreelError,
        Internal,
        InvalidArgument,
        NotFound,
        PermissionDenied,
        ResourceExhausted,
        Unauthenticated,
        Unavailable,
        Unreachable,
        Violation,
    )
    from halfreel_client.film import (
        Artifact,
        Film,
        FilmError,
        FilmPage,
        FilmState,
        Motion,
        Picture,
        Scene,
        SceneState,
        StageFigure,
    )
    from halfreel_client.film_events import (
        Failed,
        FilmEvent,
        Happening,
        Rejoining,
        SceneChanged,
        ScenePreview,
        SceneStage,
        SceneStep,
        ScriptDelta,
        Snapshot,
        StateChanged,
        VideoReady,
        Waiting,
    )
    from halfreel_client.film_settings import FilmSettings
    from halfreel_client.levers import Levers, Variant
    from halfreel_client.memory import (
        DeviceKind,
        DeviceMemory,
        HostMemory,
        LeverStatus,
        MemoryPeak,
        MemoryProfile,
        MemoryReport,
        ModelState,
        PhasePeak,
        ServerKind,
        ServerMemory,
        Suggestion,
    )
    from halfreel_client.model_clients import LlmClient, VideoClient
    from halfreel_client.text import (
        FinishReason,
        LlmModel,
        Message,
        Queued,
        Role,
        TextCompleted,
        TextDelta,
        TextEvent,
        TextRequest,
    )

__all__ = [
    "AlreadyExists",
    "Artifact",
    "AsyncClient",
    "AsyncLlmClient",
    "AsyncVideoClient",
    "Cancelled",
    "Client",
    "ClipCompleted",
    "ClipEvent",
    "ClipRequest",
    "Credentials",
    "CredentialsError",
    "DataLoss",
    "DeadlineExceeded",
    "DeviceKind",
    "DeviceMemory",
    "Failed",
    "FailedPrecondition",
    "Film",
    "FilmError",
    "FilmEvent",
    "FilmPage",
    "FilmSettings",
    "FilmState",
    "FinishReason",
    "HalfreelError",
    "Happening",
    "HostMemory",
    "Internal",
    "InvalidArgument",
    "LastFrameChunk",
    "LeverStatus",
    "Levers",
    "LlmClient",
    "LlmModel",
    "MemoryPeak",
    "MemoryProfile",
    "MemoryReport",
    "Message",
    "ModelState",
    "Motion",
    "NotFound",
    "PermissionDenied",
    "PhasePeak",
    "Picture",
    "Planned",
    "Preview",
    "Queued",
    "Rejoining",
    "ResourceExhausted",
    "Role",
    "Scene",
    "SceneChanged",
    "ScenePreview",
    "SceneStage",
    "SceneState",
    "SceneStep",
    "ScriptDelta",
    "ServerKind",
    "ServerMemory",
    "Snapshot",
    "Stage",
    "StageDuration",
    "StageFigure",
    "StageStarted",
    "StateChanged",
    "Step",
    "Suggestion",
    "TextCompleted",
    "TextDelta",
    "TextEvent",
    "TextRequest",
    "Unauthenticated",
    "Unavailable",
    "Unreachable",
    "Variant",
    "VideoChunk",
    "VideoClient",
    "VideoModel",
    "VideoReady",
    "Violation",
    "Waiting",
]

_HOMES = (
    "aio_client",
    "aio_model_clients",
    "client",
    "clip",
    "credentials",
    "errors",
    "film",
    "film_events",
    "film_settings",
    "levers",
    "memory",
    "model_clients",
    "text",
)


def __getattr__(name: str) -> object:
    """Imports at the first use: gRPC takes half a second, and the command answers Ctrl-C before that."""
    if name in __all__:
        for home in _HOMES:
            module = importlib.import_module(f"halfreel_client.{home}")
            if hasattr(module, name):
                globals()[name] = value = getattr(module, name)
                return value
    raise AttributeError(f"module 'halfreel_client' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The names that are offered."""
    return __all__
