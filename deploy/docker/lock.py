"""Writes the locks of the images, requirements-IMAGE.txt, and their bills of materials, sbom-IMAGE.cdx.json.

A lock holds an image's third-party packages, by exact version and by hash; torch alone is left to the Dockerfiles. It
needs the package index, and for CUDA's packages some gigabytes of it. It does not know how images are built.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from bill import write_bill

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
_MODEL_SERVER = ("protos", "services/runtime", "models/pocket")
# The project's own distributions in each image. What the pocket models were trained and built with is not needed to
# load them, so models/pocket adds nothing to a lock.
DISTRIBUTIONS = {
    "gateway": ("protos", "services/runtime", "services/gateway"),
    "llm": (*_MODEL_SERVER, "services/llm"),
    "video": (*_MODEL_SERVER, "services/video"),
}
# Each image's locks; llm-cuda and video-cuda are their CPU images with CUDA's packages besides.
LOCKS = {
    "gateway": ("gateway",),
    "llm": ("llm",),
    "video": ("video",),
    "llm-cuda": ("llm", "cuda"),
    "video-cuda": ("video", "cuda"),
}
# Packages that torch brings on a GPU. nvidia-ml-py only asks the driver; every model server has it.
_CUDA = re.compile(r"nvidia-(?!ml-py)|cuda-|triton")
# Where packages come from is for who builds the images to say.
_NEVER_WRITTEN = ("index-url", "find-links", "trusted-host", "options")
_HEAD = "# Written by deploy/docker/lock.py from {source}; `make lock` writes it again.\n"


def _pinned(name: str) -> str:
    """A package with its exact version in constraints.txt, such as torch==2.13.0."""
    return next(line for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines() if line.startswith(f"{name}=="))


def _wanted(distributions: tuple[str, ...]) -> list[str]:
    """What the distributions ask for, other than each other."""
    wanted: set[str] = set()
    for folder in distributions:
        if folder != "models/pocket":
            project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
            wanted.update(each for each in project["dependencies"] if not each.startswith("halfreel-"))
    return sorted(wanted)


def _compiled(wanted: list[str], path: Path, environ: dict[str, str]) -> dict[str, str]:
    """The lock of what is wanted, as blocks of text by package; keeps the versions that `path` has already."""
    with tempfile.TemporaryDirectory() as folder:
        asked, answer = Path(folder, "wanted.in"), Path(folder, path.name)
        asked.write_text("\n".join(wanted) + "\n", encoding="utf-8")
        if path.exists():
            answer.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
        options = [
            "--generate-hashes",
            "--allow-unsafe",
            "--strip-extras",
            "--no-annotate",
            "--no-header",
            "--no-config",
        ]
        silence = [f"--no-emit-{each}" for each in ("index-url", "find-links", "trusted-host", "options")]
        command = [sys.executable, "-m", "piptools", "compile", "--quiet", *options, *silence]
        command += ["--constraint", str(CONSTRAINTS), "--output-file", str(answer), str(asked)]
        subprocess.run(command, check=True, env=environ)
        text = "\n".join(line for line in answer.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
    blocks = re.split(r"\n(?=\S)", text.strip())
    return {block.split("==")[0]: block for block in blocks if block}


def _write(path: Path, source: str, blocks: dict[str, str]) -> None:
    path.write_text(_HEAD.format(source=source) + "\n".join(blocks.values()) + "\n", encoding="utf-8")


def _lock_path(name: str) -> Path:
    return HERE / f"requirements-{name}.txt"


def write_locks(environ: dict[str, str]) -> None:
    """Writes requirements-IMAGE.txt for every image, for CUDA, and for the tools that build our own packages."""
    torch = _pinned("torch")
    for image, distributions in DISTRIBUTIONS.items():
        path = _lock_path(image)
        blocks = _compiled(_wanted(distributions), path, environ)
        kept = {name: block for name, block in blocks.items() if name != "torch" and not _CUDA.match(name)}
        _write(path, "the pyproject.toml files and constraints.txt", kept)
    _write(_lock_path("build"), "hatchling and pip", _compiled(["hatchling", "pip"], _lock_path("build"), environ))
    # A machine set up for torch without CUDA would not hear of CUDA's packages: the index alone is asked.
    plain = {name: value for name, value in environ.items() if name != "PIP_FIND_LINKS"}
    blocks = _compiled([torch], _lock_path("cuda"), {**plain, "PIP_CONFIG_FILE": os.devnull})
    cuda = {name: block for name, block in blocks.items() if _CUDA.match(name)}
    _write(_lock_path("cuda"), f"what {torch} asks for on a GPU", cuda)


def write_bills() -> None:
    """Writes sbom-IMAGE.cdx.json for every image from its locks."""
    for image, locks in LOCKS.items():
        text = "".join(_lock_path(lock).read_text(encoding="utf-8") for lock in locks)
        packages = dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", text, re.MULTILINE))
        if image != "gateway":
            packages["torch"] = _pinned("torch").split("==")[1]
        for folder in DISTRIBUTIONS[locks[0]]:
            project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
            packages[project["name"]] = project["version"]
        write_bill(HERE / f"sbom-{image}.cdx.json", f"halfreel-{image}", packages)


def main() -> None:
    """Writes all, or with --bills-only no lock."""
    parser = argparse.ArgumentParser(description="Writes the locks and the bills of materials of the images.")
    parser.add_argument("--bills-only", action="store_true", help="leave the locks as they are; asks no index")
    if not parser.parse_args().bills_only:
        write_locks(dict(os.environ))
    write_bills()


if __name__ == "__main__":
    main()
