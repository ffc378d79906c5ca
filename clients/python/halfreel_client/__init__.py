"""The typed client of Halfreel: one sentence in, a film out.

    from halfreel_client import Client

    with Client("127.0.0.1:7600") as client:
        film = client.create_film("a red circle over the sea")
        for event in client.watch(film.film_id):
            print(event.what)
        client.save_video(film.film_id, "film.mp4")

`AsyncClient` has the same methods for asyncio; `LlmClient` and `VideoClient` call a model server directly.
"""

from halfreel_client.aio_client import AsyncClient
from halfreel_client.aio_model_clients import AsyncLlmClient, AsyncVideoClient
from halfreel_client.client import Client
from halfreel_client.clip import (
    ClipCompleted,
    ClipEvent,
    ClipRequest,
    Preview,
    Stage,
    StageDuration,
    StageStarted,
    Step,
    VideoChunk,
    VideoModel,
)
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
    ResourceExhausted,
    Unavailable,
    Unreachable,
    Violation,
)
from halfreel_client.film import (
    Artifact,
    Film,
    FilmError,
    FilmPage,
    FilmSettings,
    FilmState,
    Motion,
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
from halfreel_client.memory import (
    DeviceKind,
    DeviceMemory,
    HostMemory,
    MemoryPeak,
    MemoryReport,
    PhasePeak,
    ServerKind,
    ServerMemory,
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
    "LlmClient",
    "LlmModel",
    "MemoryPeak",
    "MemoryReport",
    "Message",
    "Motion",
    "NotFound",
    "PhasePeak",
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
    "TextCompleted",
    "TextDelta",
    "TextEvent",
    "TextRequest",
    "Unavailable",
    "Unreachable",
    "VideoChunk",
    "VideoClient",
    "VideoModel",
    "VideoReady",
    "Violation",
    "Waiting",
]
