"""What the tests of deploy/ share: the environments of the images, each made once by its Dockerfile's own steps."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dockerfile import ROOT, execute, read_stages

# The programs of requirements-deploy.txt are those beside this Python, and kubectl is that of tests/deploy/kubectl
# where it is installed, whatever the PATH.
_FOLDERS = (Path(sys.executable).parent, ROOT / "tests" / "deploy" / "kubectl" / "node_modules" / "kubectl")
os.environ["PATH"] = os.pathsep.join([*map(str, _FOLDERS), os.environ["PATH"]])


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cuda-images", action="store_true", help="build those, too: 3 GB to read and 10 GB of disk")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda_images") is not None and not item.config.getoption("--cuda-images"):
        pytest.skip("gigabytes of CUDA packages: --cuda-images asks for them")
    if item.get_closest_marker("namespaces") is not None and os.geteuid() != 0:
        if "namespaces" in item.config.getoption("--forbid-skips").split(","):
            pytest.fail("may not be skipped here: needs root, to make namespaces", pytrace=False)
        pytest.skip("needs root, to make namespaces")


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """Gives the virtual environment of an image, from a fresh folder; gigabytes, which are removed in the end."""
    made: dict[str, Path] = {}

    def make(image: str) -> Path:
        if image not in made:
            folder = tmp_path_factory.mktemp(image)
            made[image] = execute(read_stages(ROOT / "deploy" / "docker" / f"{image}.Dockerfile")[0], folder)
        return made[image]

    yield make
    for path in made.values():
        shutil.rmtree(path.parent)
