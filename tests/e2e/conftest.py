"""The three real servers, as three processes that a test can kill and start again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from stack import SERVICE_NAMES, Stack


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
