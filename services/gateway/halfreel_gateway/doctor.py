"""Says what the gateway could do on this machine: `python -m halfreel_gateway.doctor [--json] [--setting value ...]`.

Takes the gateway's own settings, and changes nothing. The exit code is 0 when the gateway would run; model servers that
do not answer are told, but a film would wait for them.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import av
import grpc
import sqlalchemy as sa
from grpc_health.v1 import health_pb2, health_pb2_grpc

from halfreel_gateway.channels import ModelAccess, single_channel
from halfreel_gateway.database import Database, database_url
from halfreel_gateway.join import ENCODER
from halfreel_gateway.model_access import model_access
from halfreel_gateway.settings import LLM_SERVICE, SERVICE, VIDEO_SERVICE, GatewaySettings
from halfreel_runtime.settings import load_settings

_LIBRARIES = ("halfreel-gateway", "av", "dbos", "grpcio", "sqlalchemy")
_ANSWER_WITHIN_S = 2.0


@dataclass(frozen=True)
class Check:
    """One thing that the gateway needs: whether it is there, and what it is or why it is not."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class Diagnosis:
    """All checks."""

    service: str
    ready: bool
    free_disk_bytes: int
    versions: dict[str, str]
    checks: list[Check]


async def diagnose(settings: GatewaySettings) -> Diagnosis:
    """Checks folder, database, disk, encoder and model servers."""
    data_dir = settings.data_dir.expanduser()
    existing = next(folder for folder in (data_dir, *data_dir.parents) if folder.exists())
    free_bytes = shutil.disk_usage(existing).free
    needed = [
        _check_folder(data_dir, existing),
        _check_database(settings, data_dir),
        Check(
            "disk",
            free_bytes >= settings.min_free_disk_bytes,
            f"{free_bytes} bytes free, {settings.min_free_disk_bytes} needed",
        ),
        Check("encoder", ENCODER in av.codecs_available, f"{ENCODER} for clips that disagree"),
    ]
    servers: list[Check] = []
    try:
        access = model_access(settings)
    except ValueError as error:
        needed.append(Check("model files", False, str(error)))
    else:
        servers = await asyncio.gather(
            *(_check_server("llm", LLM_SERVICE, address, access) for address in settings.llm_addresses),
            *(_check_server("video", VIDEO_SERVICE, address, access) for address in settings.video_addresses),
        )
    return Diagnosis(
        service=SERVICE,
        ready=all(check.ok for check in needed),
        free_disk_bytes=free_bytes,
        versions={"python": platform.python_version()}
        | {library: importlib.metadata.version(library) for library in _LIBRARIES},
        checks=[*needed, *servers],
    )


def _check_folder(data_dir: Path, existing: Path) -> Check:
    if not existing.is_dir():
        return Check("data_dir", False, f"{existing} is no folder")
    writable = os.access(existing, os.W_OK | os.X_OK)
    if not writable:
        return Check("data_dir", False, f"{existing} can't be written by this user")
    return Check("data_dir", True, str(data_dir) if existing == data_dir else f"{data_dir} will be made")


def _check_database(settings: GatewaySettings, data_dir: Path) -> Check:
    try:
        url = database_url(settings.database_url, data_dir)
    except ValueError as error:
        return Check("database", False, str(error))
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
        return Check("database", True, "sqlite, will be made")
    database = Database(url)
    try:
        with database.reading() as connection:
            connection.execute(sa.select(sa.literal(1)))
    except sa.exc.DBAPIError as error:
        return Check("database", False, f"can't be opened: {' '.join(str(error.orig).split())}")
    finally:
        database.close()
    return Check("database", True, url.get_backend_name())


async def _check_server(name: str, service: str, address: str, access: ModelAccess) -> Check:
    async with single_channel(address, access, address) as channel:
        try:
            answer = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=service), timeout=_ANSWER_WITHIN_S
            )
        except grpc.RpcError as error:
            return Check(name, False, f"{address} does not answer ({error.code().name})")
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    return Check(name, answer.status == health_pb2.HealthCheckResponse.SERVING, f"{address} is {status}")


def main(argv: Sequence[str]) -> int:
    """Prints the diagnosis, as lines for people or as JSON; returns the exit code."""
    settings = load_settings(GatewaySettings, SERVICE, [flag for flag in argv if flag != "--json"])
    diagnosis = asyncio.run(diagnose(settings))
    if "--json" in argv:
        sys.stdout.write(json.dumps(asdict(diagnosis)) + "\n")
    else:
        for check in diagnosis.checks:
            sys.stdout.write(f"{'ok' if check.ok else 'NO':<3} {check.name:<10} {check.detail}\n")
    return 0 if diagnosis.ready else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
