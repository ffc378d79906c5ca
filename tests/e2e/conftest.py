"""The three real servers, as three processes that a test can kill and start again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from stack import SERVICE_NAMES, Stack

# A first test starts three servers, whose files no memory holds yet, and makes a film, beside two others that do.
_LIMIT_S = 600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(_LIMIT_S))


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("stack"))
    try:
        for name in SERVICE_NAMES:
            stack.start(name)
        stack.wait_serving(*SERVICE_NAMES)
        yield stack
    finally:
        stack.stop()


@pytest.fixture
def own_stack(tmp_path: Path) -> Iterator[Stack]:
    """Servers that the test starts itself."""
    stack = Stack(tmp_path)
    try:
        yield stack
    finally:
        stack.stop()
