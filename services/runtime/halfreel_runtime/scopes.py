"""What a token may do: the scope that each method of each service needs.

A method that stands in no line here is denied to everybody once tokens are in use. It does not know tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Scope(StrEnum):
    """A right that a token has or has not; none of them includes another."""

    GENERATE = "generate"
    READ = "read"
    ADMIN = "admin"


_BY_SERVICE: Mapping[str, Mapping[str, Scope]] = {
    "halfreel.llm.v1.LlmService": {
        "Generate": Scope.GENERATE,
        "PlanMemory": Scope.READ,
        "MemoryStatus": Scope.READ,
        "GetModel": Scope.READ,
    },
    "halfreel.video.v1.VideoService": {
        "Generate": Scope.GENERATE,
        "PlanMemory": Scope.READ,
        "MemoryStatus": Scope.READ,
        "GetModel": Scope.READ,
    },
    "halfreel.gpu.v1.MemoryService": {
        "WatchMemory": Scope.READ,
        "ResetPeaks": Scope.ADMIN,
        "ClearMemory": Scope.ADMIN,
        "Sleep": Scope.ADMIN,
        "Wake": Scope.ADMIN,
    },
    "halfreel.gateway.v1.GatewayService": {
        "CreateFilm": Scope.GENERATE,
        "GetFilm": Scope.READ,
        "ListFilms": Scope.READ,
        "WatchFilm": Scope.READ,
        "CancelFilm": Scope.GENERATE,
        "DeleteFilm": Scope.GENERATE,
        "ReadVideo": Scope.READ,
        "MemoryStatus": Scope.READ,
    },
}

# By full method name, as gRPC spells it: "/halfreel.llm.v1.LlmService/Generate".
METHOD_SCOPES: Mapping[str, Scope] = {
    f"/{service}/{method}": scope for service, methods in _BY_SERVICE.items() for method, scope in methods.items()
}
METRICS_SCOPE = Scope.READ
