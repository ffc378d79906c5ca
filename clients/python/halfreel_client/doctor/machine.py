"""What the machine itself has: Python, packages, GPUs, memory, disk, ports."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from pathlib import Path

from halfreel_client.display.amounts import bytes_text
from halfreel_client.doctor.findings import Finding
from halfreel_client.gpus import find_gpus
from halfreel_client.supervisor.running import Running
from halfreel_client.supervisor.stack import Ports, missing_packages, taken_ports

_OLDEST_PYTHON = (3, 11)
# The gateway takes no new film with less free than 256 MiB; a film and its clips come on top.
_NEEDED_DISK_BYTES = 1024 * 1024 * 1024
_GROUP = "machine"


def machine_findings(data_folder: Path) -> list[Finding]:
    """Looks at everything that needs no server's code."""
    return [_python(), *_packages(), *_gpus(), _memory(), _disk(data_folder), _ports(data_folder)]


def _python() -> Finding:
    ok = sys.version_info >= _OLDEST_PYTHON
    detail = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Finding(_GROUP, "python", ok, detail if ok else f"{detail}; 3.11 or newer is needed")


def _packages() -> list[Finding]:
    missing = set(missing_packages())
    findings = []
    for service in ("llm", "video", "gateway"):
        name = f"halfreel-{service}"
        if name in missing:
            detail = f"not installed: pip install -e services/runtime -e services/{service} from Halfreel's folder"
            findings.append(Finding(_GROUP, name, False, detail))
        else:
            findings.append(Finding(_GROUP, name, True, importlib.metadata.version(name)))
    return findings


def _gpus() -> list[Finding]:
    gpus = find_gpus()
    if not gpus:
        detail = "none that the NVIDIA driver tells of: the embedded models run on the processor, large ones do not"
        return [Finding(_GROUP, "gpu", False, detail, needed=False)]
    return [
        Finding(
            _GROUP,
            f"gpu {index}",
            True,
            f"{gpu.name}, {bytes_text(gpu.free_bytes)} of {bytes_text(gpu.total_bytes)} free, "
            f"driver {gpu.driver_version}, {gpu.uuid}",
        )
        for index, gpu in enumerate(gpus)
    ]


def _memory() -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Finding(_GROUP, "memory", True, f"{bytes_text(total)}, {usable} processors")


def _disk(data_folder: Path) -> Finding:
    folder = data_folder
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    detail = f"{bytes_text(free)} free for {data_folder}"
    if not os.access(folder, os.W_OK):
        return Finding(_GROUP, "disk", False, f"{folder} cannot be written; choose another --data-dir")
    if free < _NEEDED_DISK_BYTES:
        return Finding(_GROUP, "disk", False, f"{detail}; {bytes_text(_NEEDED_DISK_BYTES)} are needed")
    return Finding(_GROUP, "disk", True, detail)


def _ports(data_folder: Path) -> Finding:
    running = Running.read(data_folder)
    if running is not None:
        where = ", ".join(f"{name} {address}" for name, address in sorted(running.addresses.items()))
        return Finding(_GROUP, "ports", True, f"`halfreel up` runs: {where}")
    if taken := taken_ports(Ports()):
        detail = f"taken by another program: {'; '.join(taken)}; `halfreel up` can be given others"
        return Finding(_GROUP, "ports", False, detail, needed=False)
    return Finding(_GROUP, "ports", True, "7600 to 7602 and 7700 to 7702 are free")
