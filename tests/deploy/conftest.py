"""What the tests of deploy/ share: the environments of the images, each made once by its Dockerfile's own steps."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from dockerfile import ROOT, execute, read_stages

# The programs of requirements-deploy.txt are those beside this Python, and kubectl is that of tests/deploy/kubectl
# where it is installed, whatever the PATH.
_FOLDERS = (Path(sys.executable).parent, ROOT / "tests" / "deploy" / "kubectl" / "node_modules" / "kubectl")
os.environ["PATH"] = os.pathsep.join([*map(str, _FOLDERS), os.environ["PATH"]])


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cuda-images", action="store_true", help="build those, too: 3 GB to read and 10 GB of disk")


def _skipped(item: pytest.Item) -> bool:
    return item.get_closest_marker("cuda_images") is not None and not item.config.getoption("--cuda-images")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if _skipped(item):
        pytest.skip("gigabytes of CUDA packages: --cuda-images asks for them")
    if item.get_closest_marker("namespaces") is not None and os.geteuid() != 0:
        if "namespaces" in item.config.getoption("--forbid-skips").split(","):
            pytest.fail("may not be skipped here: needs root, to make namespaces", pytrace=False)
        pytest.skip("needs root, to make namespaces")


@pytest.fixture(scope="session", autouse=True)
def builds(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Future[Path]]:
    """The environments of the images that the tests ask for: begun at once, beside tests that mostly wait."""
    stages = {
        image: read_stages(ROOT / "deploy" / "docker" / f"{image}.Dockerfile")[0] for image in _asked_for(request)
    }
    folders = {image: tmp_path_factory.mktemp(image) for image in stages}
    pool = ThreadPoolExecutor(os.cpu_count())

    def remove() -> None:
        pool.shutdown(cancel_futures=True)
        subprocess.run(["rm", "-rf", *map(str, folders.values())], check=True)

    # Gigabytes in tens of thousands of files: not as part of the last test, whose time has a limit.
    request.config.add_cleanup(remove)
    return {image: pool.submit(execute, stages[image], folder) for image, folder in folders.items()}


@pytest.fixture(scope="session")
def environment(builds: dict[str, Future[Path]]) -> Callable[[str], Path]:
    """Gives the virtual environment of an image, from a fresh folder."""
    return lambda image: builds[image].result()


def _asked_for(request: pytest.FixtureRequest) -> list[str]:
    """The images whose environments the tests use: of one that does not say, those of the laptop's stack."""
    images: dict[str, None] = {}
    for item in request.session.items:
        if isinstance(item, pytest.Function) and "environment" in item.fixturenames and not _skipped(item):
            named = item.callspec.params.get("image") if hasattr(item, "callspec") else None
            images |= dict.fromkeys([str(named)] if named else ["gateway", "llm", "video"])
    return list(images)
