"""Files that count while their owner lives, and what is left of those that are dead."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from halfreel_runtime.locked_file import LockedFile, remove_unnamed, removed_if_dead


def test_an_owner_is_not_dead_because_no_more_files_can_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owned = LockedFile(tmp_path, "server-1")

    def full(*_: Any) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", full)
        assert not removed_if_dead(tmp_path / "server-1")
    assert (tmp_path / "server-1").exists()
    owned.close()
    assert removed_if_dead(tmp_path / "server-1")


def test_what_was_left_before_it_had_its_name_is_swept_once_it_is_old(tmp_path: Path) -> None:
    old, young, named = (tmp_path / name for name in (".wish-1", ".server-2", "turn"))
    for path in (old, young, named):
        path.touch()
    for path in (old, named):
        os.utime(path, (0, 0))
    remove_unnamed(tmp_path)
    assert sorted(tmp_path.iterdir()) == [young, named]
