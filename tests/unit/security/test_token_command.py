"""`halfreel tokens`: a token is shown once, kept as a hash, listed without it, and taken back."""

from __future__ import annotations

import json
import os
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from halfreel_client.command.app import app
from halfreel_client.token_file import add_token, read_tokens
from halfreel_runtime.errors import Unauthenticated
from halfreel_runtime.tokens import TokenFile


def run(*arguments: str | Path, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["tokens", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


def known(path: Path, token: str) -> bool:
    try:
        TokenFile(path).authenticate([f"Bearer {token}"])
    except Unauthenticated:
        return False
    return True


def test_a_token_is_shown_once_and_is_good(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    token = run("add", "--file", path, "--name", "anna", "--scopes", "generate,read", "--expires", "90d").strip()
    assert known(path, token)
    assert token not in run("list", "--file", path) + path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    [entry] = read_tokens(path)
    assert (entry.name, entry.scopes) == ("anna", ("generate", "read"))
    left = datetime.fromisoformat(entry.expires or "") - datetime.now(UTC)
    assert timedelta(days=89, hours=23) < left <= timedelta(days=90)


def test_a_token_can_go_into_a_file_for_one_s_own_eyes(tmp_path: Path) -> None:
    path, own = tmp_path / "tokens.json", tmp_path / "anna.token"
    shown = run("add", "--file", path, "--name", "anna", "--output", own)
    token = own.read_text().strip()
    assert known(path, token)
    assert token not in shown
    assert stat.S_IMODE(own.stat().st_mode) == 0o600


def test_the_list_tells_what_is_over(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    add_token(path, "over", ["read"], datetime.now(UTC) - timedelta(hours=1))
    run("add", "--file", path, "--name", "ever", "--scopes", "admin", "--expires", "never")
    listed = [json.loads(line) for line in run("list", "--file", path, "--json").splitlines()]
    assert [(each["name"], each["scopes"], each["expired"]) for each in listed] == [
        ("over", ["read"], True),
        ("ever", ["admin"], False),
    ]
    assert not [each for each in listed if "sha256" in each]
    text = run("list", "--file", path)
    assert "over" in text
    assert "never" in text


def test_tokens_are_taken_back_by_name_or_by_id(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    tokens = {name: run("add", "--file", path, "--name", name).strip() for name in ("anna", "berta", "carl")}
    second = run("add", "--file", path, "--name", "anna").strip()
    run("revoke", "--file", path, "--name", "anna")
    run("revoke", "--file", path, "--name", read_tokens(path)[0].id)
    assert [known(path, token) for token in (tokens["anna"], second, tokens["berta"], tokens["carl"])] == [
        *(False, False, False, True)
    ]
    assert "no token of the name or id dora" in run("revoke", "--file", path, "--name", "dora", code=4)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--scopes", "write"), "must be one or more of generate,read,admin"),
        (("--scopes", ""), "must be one or more of generate,read,admin"),
        (("--expires", "soon"), "must be days (90d), hours (12h) or never"),
        (("--expires", "0d"), "must be days"),
        (("--name", "a b"), "must be 1 to 64 of"),
        (("--name", ""), "must be 1 to 64 of"),
    ],
)
def test_a_mistake_is_told_in_one_line_and_changes_nothing(
    tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    path = tmp_path / "tokens.json"
    output = run("add", "--file", path, "--name", "anna", *arguments, code=2)
    assert told in output
    assert len(output.splitlines()) == 1
    assert not path.exists()


def test_another_file_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "notes.json"
    path.write_text('{"notes": []}')
    assert "is no file of tokens" in run("add", "--file", path, "--name", "anna", code=2)
    assert path.read_text() == '{"notes": []}'


def test_many_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    threads = [
        threading.Thread(target=lambda: [add_token(path, "anna", ["read"], None) for _ in range(10)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_tokens(path)) == 40
    assert [each.name for each in tmp_path.iterdir()] == ["tokens.json"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_keeps_its_owner_and_its_group_s_right(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    add_token(path, "anna", ["read"], None)
    os.chown(path, 0, 65534)
    path.chmod(0o640)
    add_token(path, "berta", ["read"], None)
    status = path.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (0, 65534, 0o640)
