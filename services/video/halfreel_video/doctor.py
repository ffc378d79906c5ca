"""Says what the video server could do on this machine: `python -m halfreel_video.doctor [--json]`.

Takes the server's own settings, as flags too. Loads no weights; reads their sizes. The exit code is 0 when the server
would run.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from halfreel_runtime.errors import HalfreelError
from halfreel_runtime.settings import load_settings
from halfreel_video.folder import KEYFRAME, SVD, Family, open_folder
from halfreel_video.mp4 import ENCODER, encoder_available
from halfreel_video.quiet import quiet_libraries
from halfreel_video.settings import SERVICE, VideoSettings

_LIBRARIES = ("halfreel-video", "torch", "diffusers", "transformers", "av")


@dataclass(frozen=True)
class Check:
    """One thing that the server needs: whether it is there, and what it is or why it is not."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class Diagnosis:
    """All checks. `weight_bytes` of both models must fit in `free_bytes`; a clip's own memory comes on top."""

    service: str
    ready: bool
    device: str
    device_name: str
    precision: str
    weight_bytes: int
    free_bytes: int
    versions: dict[str, str]
    checks: list[Check]


def diagnose(settings: VideoSettings) -> Diagnosis:
    """Checks device, models, memory and encoder."""
    from halfreel_runtime.device import CPU, find_device
    from halfreel_runtime.memory import MemoryMonitor
    from halfreel_video.loading import dtype_for

    checks: list[Check] = []
    device = _checked(checks, "device", lambda: find_device(settings.device), lambda found: found.name) or CPU
    report = MemoryMonitor(device).report()
    free_bytes = report.devices[0].device_free_bytes if device.kind == "cuda" else report.host.available_bytes
    dtype = dtype_for(settings.precision, device.kind)
    weight_bytes = 0
    families: tuple[tuple[str, str, Family], ...] = (
        ("model", settings.model, SVD),
        ("keyframe_model", settings.keyframe_model, KEYFRAME),
    )
    for name, model, family in families:
        folder = _checked(checks, name, functools.partial(open_folder, model, family), lambda found: found.model_id)
        if folder is not None:
            weight_bytes += folder.parameter_count() * dtype.itemsize
    checks.append(
        Check("memory", weight_bytes < free_bytes, f"{weight_bytes} bytes of weights, {free_bytes} bytes free")
    )
    checks.append(Check("encoder", encoder_available(), f"{ENCODER} for H.264"))
    return Diagnosis(
        service=SERVICE,
        ready=all(check.ok for check in checks),
        device=device.torch_name,
        device_name=device.name,
        precision=str(dtype).removeprefix("torch."),
        weight_bytes=weight_bytes,
        free_bytes=free_bytes,
        versions={"python": platform.python_version()}
        | {library: importlib.metadata.version(library) for library in _LIBRARIES},
        checks=checks,
    )


def _checked(checks: list[Check], name: str, find: Callable[[], Any], describe: Callable[[Any], str]) -> Any:
    """Adds a check of something that is found or refused; returns what was found, or None."""
    try:
        found = find()
    except HalfreelError as error:
        checks.append(Check(name, False, error.message))
        return None
    checks.append(Check(name, True, describe(found)))
    return found


def main(argv: list[str]) -> int:
    """Prints the diagnosis, as lines for people or as JSON; returns the exit code."""
    as_json = "--json" in argv
    settings = load_settings(VideoSettings, SERVICE, [flag for flag in argv if flag != "--json"])
    os.environ["HF_HUB_OFFLINE"] = "1"
    quiet_libraries()
    diagnosis = diagnose(settings)
    if as_json:
        sys.stdout.write(json.dumps(asdict(diagnosis)) + "\n")
    else:
        for check in diagnosis.checks:
            sys.stdout.write(f"{'ok' if check.ok else 'NO':<3} {check.name:<15} {check.detail}\n")
    return 0 if diagnosis.ready else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
