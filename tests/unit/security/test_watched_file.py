"""Who may read a secret file: the owner, and a group only where the file is root's and the server is not root."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from halfreel_runtime.watched_file import FileRefusedError, read_public, read_secret, signature

SOMEBODY = 65534
# Read by a process that is not root: what it says is the file's content, or why not.
READ = """
import os, pathlib, sys
from halfreel_runtime.watched_file import FileRefusedError, read_secret
os.setgroups([65534]); os.setgid(65534); os.setuid(65534)
try:
    print(read_secret(pathlib.Path(sys.argv[1]), "tokens_file").decode())
except FileRefusedError as error:
    print(error)
"""


def read_by_somebody(path: Path) -> str:
    run = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=True)
    return run.stdout.strip()


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_one_s_own_file_is_read(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "tokens"
    path.write_text("content")
    path.chmod(mode)
    assert read_secret(path, "tokens_file") == b"content"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620, 0o666, 0o700, 0o601])
def test_one_s_own_file_is_refused_when_others_have_any_right(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "tokens"
    path.write_text("content")
    path.chmod(mode)
    with pytest.raises(FileRefusedError, match=f"tokens_file .* has the rights {mode:04o}.* make them 0600"):
        read_secret(path, "tokens_file")
    assert read_public(path, "tls_certificate_file") == b"content"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of others")
@pytest.mark.parametrize(
    ("owner", "mode", "told"),
    [
        (0, 0o440, "content"),
        (0, 0o640, "content"),
        (0, 0o660, "make them 0640"),
        (0, 0o644, "make them 0640"),
        (SOMEBODY, 0o600, "content"),
        (SOMEBODY, 0o640, "make them 0600"),
        (0, 0o400, "can't be read: Permission denied"),
    ],
)
def test_a_secret_of_root_may_be_read_by_the_server_s_group(owner: int, mode: int, told: str) -> None:
    # Not in tmp_path, whose folders are root's alone.
    path = Path("/tmp") / f"halfreel-secret-{os.getpid()}-{owner}-{mode:o}"
    try:
        path.write_text("content")
        os.chown(path, owner, SOMEBODY)
        path.chmod(mode)
        assert told in read_by_somebody(path)
    finally:
        path.unlink()


def test_a_link_that_is_turned_to_another_file_is_a_change(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text("same size")
        os.utime(tmp_path / name, ns=(1, 1))
    link = tmp_path / "link"
    assert signature(link) is None
    link.symlink_to("one")
    before = signature(link)
    link.unlink()
    link.symlink_to("two")
    assert signature(link) not in (None, before)
