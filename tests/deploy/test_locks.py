"""The locks of the images: complete, by hash, at the versions that the rest of the project is tested with."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from dockerfile import ROOT, read_stages
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

FOLDER = ROOT / "deploy" / "docker"
IMAGES = ("gateway", "llm", "video", "llm-cuda", "video-cuda")
LOCKS = ("gateway", "llm", "video", "cuda", "build")


def locked(lock: str) -> dict[str, str]:
    """Versions by name; fails where one has no hash."""
    lines = (FOLDER / f"requirements-{lock}.txt").read_text().splitlines()
    blocks = re.split(r"\n(?=\S)", "\n".join(line for line in lines if not line.startswith("#")).strip())
    versions = {}
    for block in blocks:
        pin, *hashes = block.replace("\\\n", "").split()
        name, version = pin.split("==")
        assert hashes, f"{name} has no hash"
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", each) for each in hashes), block
        versions[canonicalize_name(name)] = version
    return versions


def constrained() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {canonicalize_name(each.split("==")[0]): each.split("==")[1] for each in lines if "==" in each}


def copied(image: str) -> list[str]:
    """The project's own folders that an image is built from, and its locks, as its Dockerfile says."""
    return [
        word for argument in read_stages(FOLDER / f"{image}.Dockerfile")[0].all("COPY") for word in argument.split()
    ]


def locks_of(image: str) -> list[str]:
    names = [Path(each).stem.removeprefix("requirements-") for each in copied(image) if each.endswith(".txt")]
    return [name for name in names if name != "build"]


@pytest.mark.parametrize("lock", LOCKS)
def test_versions_are_those_of_the_constraints(lock: str) -> None:
    known = constrained()
    pinned = locked(lock)
    assert {name: known[name] for name in pinned if name in known} == {
        name: version for name, version in pinned.items() if name in known
    }
    if lock in ("gateway", "llm", "video"):  # CUDA's packages and the builder's have no other place than their locks
        assert not set(pinned) - set(known)


@pytest.mark.parametrize("image", IMAGES)
def test_locks_hold_all_that_the_image_asks_for(image: str) -> None:
    pinned = {name: version for lock in locks_of(image) for name, version in locked(lock).items()}
    if image != "gateway":
        (torch,) = (
            word for step in read_stages(FOLDER / f"{image}.Dockerfile")[0].all("RUN") for word in step.split()
            if word.startswith("torch==")
        )  # fmt: skip
        pinned["torch"] = torch.split("==")[1]
        assert pinned["torch"] == constrained()["torch"]
    for folder in copied(image):
        # The pocket models' own requirements are for training and building them.
        if (ROOT / folder / "pyproject.toml").exists() and folder != "models/pocket":
            project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]
            for wanted in map(Requirement, project["dependencies"]):
                if not wanted.name.startswith("halfreel-"):
                    assert wanted.specifier.contains(pinned[canonicalize_name(wanted.name)]), f"{folder}: {wanted}"
    if image == "gateway":
        assert not {"torch", "transformers", "diffusers", "numpy"} & set(pinned)


@pytest.mark.parametrize("image", IMAGES)
def test_bills_of_materials_are_those_of_the_locks(image: str, tmp_path: Path) -> None:
    bill = json.loads((FOLDER / f"sbom-{image}.cdx.json").read_text())
    listed = {canonicalize_name(each["name"]): each["version"] for each in bill["components"]}
    pinned = {name: version for lock in locks_of(image) for name, version in locked(lock).items()}
    ours = {name for name in listed if name.startswith("halfreel-")}
    assert {name: version for name, version in listed.items() if name not in ours | {"torch"}} == pinned
    assert ("torch" in listed) is (image != "gateway")
    assert {f"halfreel-{image.removesuffix('-cuda')}", "halfreel-protos", "halfreel-runtime"} <= ours
    version = read_stages(FOLDER / f"{image}.Dockerfile")[-1].pairs("LABEL")["org.opencontainers.image.version"]
    assert {listed[name] for name in ours} == {version}


def test_bills_written_again_are_the_same() -> None:
    before = {path: path.read_bytes() for path in FOLDER.glob("sbom-*.cdx.json")}
    assert len(before) == len(IMAGES)
    subprocess.run([sys.executable, str(FOLDER / "lock.py"), "--bills-only"], check=True)
    assert {path: path.read_bytes() for path in FOLDER.glob("sbom-*.cdx.json")} == before
