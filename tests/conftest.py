"""What all tests share: the skips that name what is missing, and the promise of CI that there are none."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from postgresql_cluster import Cluster

NODE_PACKAGES = Path(__file__).parent / "e2e" / "node" / "node_modules"


def postgresql_binaries() -> Path | None:
    """The newest folder of PostgreSQL's server programs, which Debian keeps off the PATH."""
    if (initdb := shutil.which("initdb")) is not None:
        return Path(initdb).resolve().parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return folders[-1].parent if folders else None


def why_missing(marker: str) -> str | None:
    """What to install for the tests of a marker; None when all is there."""
    if marker == "node":
        if shutil.which("node") is None:
            return "node is not installed"
        if not NODE_PACKAGES.is_dir():
            return "the packages of the node client are not installed: npm ci --prefix tests/e2e/node"
    if marker == "postgresql" and postgresql_binaries() is None:
        return "PostgreSQL's server programs are not installed (Debian: postgresql)"
    if marker == "prometheus":
        for program in ("prometheus", "promtool"):
            if shutil.which(program) is None:
                return f"{program} is not installed (Debian: prometheus)"
    if marker == "gpu":
        import torch

        if not torch.cuda.is_available():
            return "there is no NVIDIA GPU"
    return None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--forbid-skips", default="", help="markers whose tests must run, comma-separated")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    forbidden = item.config.getoption("--forbid-skips").split(",")
    for marker in ("node", "postgresql", "prometheus", "gpu"):
        if item.get_closest_marker(marker) is not None and (reason := why_missing(marker)) is not None:
            if marker in forbidden:
                pytest.fail(f"may not be skipped here: {reason}", pytrace=False)
            pytest.skip(f"{marker}: {reason}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What was logged goes from one process to another as UTF-8, which half a surrogate is not; a test logs one."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(scope="session")
def postgresql_programs() -> Path:
    """The folder of initdb and postgres, for tests marked `postgresql`."""
    folder = postgresql_binaries()
    assert folder is not None
    return folder


@pytest.fixture(scope="session")
def postgresql_cluster(postgresql_programs: Path) -> Iterator[Cluster]:
    """One cluster for all tests that leave it running; each takes a database of its own."""
    cluster = Cluster(postgresql_programs)
    yield cluster
    cluster.remove()
