"""Compiled kernels lie where nobody else can write."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from halfreel_runtime.kernel_cache import keep_kernels

FOLDERS = {"TRITON_CACHE_DIR": "kernels"}


def test_the_folder_is_private(tmp_path: Path) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    keep_kernels(environ, FOLDERS)
    folder = Path(environ["TRITON_CACHE_DIR"])
    assert folder == tmp_path / "halfreel" / "kernels"
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_others_can_write_to_is_not_used(tmp_path: Path) -> None:
    shared = tmp_path / "halfreel" / "kernels"
    shared.mkdir(parents=True)
    shared.chmod(0o777)
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    keep_kernels(environ, FOLDERS)
    other = Path(environ["TRITON_CACHE_DIR"])
    assert other != shared
    assert other.stat().st_mode & 0o777 == 0o700
    other.rmdir()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "halfreel").mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (tmp_path / "halfreel" / "kernels").symlink_to(elsewhere)
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    keep_kernels(environ, FOLDERS)
    assert Path(environ["TRITON_CACHE_DIR"]).parent != tmp_path / "halfreel"
    Path(environ["TRITON_CACHE_DIR"]).rmdir()


def test_the_operators_own_folder_stays() -> None:
    environ = {"TRITON_CACHE_DIR": "/srv/kernels"}
    keep_kernels(environ, FOLDERS)
    assert environ == {"TRITON_CACHE_DIR": "/srv/kernels"}


def test_where_no_folder_can_be_made_a_compiler_is_told_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    monkeypatch.setattr(tempfile, "tempdir", str(in_the_way))
    environ = {"XDG_CACHE_HOME": str(in_the_way)}
    keep_kernels(environ, FOLDERS)
    assert "TRITON_CACHE_DIR" not in environ
