"""The tokens a server takes: which, for how long, and how fast it learns of others."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from sign_in import Keyring

from halfreel_client.token_file import add_token, read_tokens, revoke_tokens
from halfreel_runtime import tokens
from halfreel_runtime.errors import PermissionDenied, Unauthenticated
from halfreel_runtime.scopes import Scope
from halfreel_runtime.tokens import MAX_TOKEN_COUNT, TokenFile, check_scope
from halfreel_runtime.watched_file import FileRefusedError


def refused(file: TokenFile, *authorizations: object) -> str:
    with pytest.raises(Unauthenticated) as raised:
        file.authenticate(authorizations)
    assert raised.value.code is grpc.StatusCode.UNAUTHENTICATED
    return raised.value.reason


def test_each_token_is_known_by_its_name_and_scopes(keyring: Keyring) -> None:
    keyring.add("anna", "generate", "read")
    keyring.add("boss", "admin", lasts=None)
    file = TokenFile(keyring.path)
    anna = file.authenticate([f"Bearer {keyring.tokens['anna']}"])
    assert (anna.name, anna.scopes) == ("anna", {Scope.GENERATE, Scope.READ})
    assert file.authenticate([f"Bearer {keyring.tokens['boss']}"]).name == "boss"


def test_the_file_holds_nothing_that_lets_anybody_in(keyring: Keyring) -> None:
    token = keyring.add("anna", "read")
    entry = json.loads(keyring.path.read_text())["tokens"][0]
    file = TokenFile(keyring.path)
    assert token not in keyring.path.read_text()
    for value in (entry["sha256"], entry["id"], entry["name"], f"hr_{entry['sha256'][:43]}"):
        assert refused(file, f"Bearer {value}") == "TOKEN_INVALID"


def test_what_is_no_token_is_refused(keyring: Keyring) -> None:
    token = keyring.add("anna", "read")
    file = TokenFile(keyring.path)
    assert refused(file) == "TOKEN_MISSING"
    assert file.authenticate([f"Bearer {token}"]).name == "anna"
    for wrong in (
        *("", "Bearer", "Bearer ", token, f"bearer {token}", f"Basic {token}", f"Bearer  {token}", f"Bearer {token} "),
        *(
            f"Bearer {token[:-1]}",
            f"Bearer {token}a",
            f"Bearer {token[:-1]}ä",
            f"Bearer {token}\n",
            "Bearer " + "a" * 10**6,
        ),
        *(b"Bearer " + token.encode(), None, f"Bearer {token.swapcase()}"),
    ):
        assert refused(file, wrong) == "TOKEN_INVALID", wrong
    assert refused(file, f"Bearer {token}", f"Bearer {token}") == "TOKEN_INVALID"


def test_a_token_s_time_ends(keyring: Keyring) -> None:
    over = keyring.add("anna", "read", lasts=timedelta(seconds=-1))
    assert refused(TokenFile(keyring.path), f"Bearer {over}") == "TOKEN_EXPIRED"


def test_no_scope_includes_another(keyring: Keyring) -> None:
    keyring.add("boss", "admin")
    boss = TokenFile(keyring.path).authenticate([f"Bearer {keyring.tokens['boss']}"])
    check_scope(boss, Scope.ADMIN)
    for missing in (Scope.READ, Scope.GENERATE, None):
        with pytest.raises(PermissionDenied) as raised:
            check_scope(boss, missing)
        assert raised.value.reason == "SCOPE_MISSING"


def test_who_is_refused_does_not_hear_whose_token_it_was(keyring: Keyring) -> None:
    over = keyring.add("anna", "read", lasts=timedelta(seconds=-1))
    with pytest.raises(Unauthenticated) as raised:
        TokenFile(keyring.path).authenticate([f"Bearer {over}"])
    entry = json.loads(keyring.path.read_text())["tokens"][0]
    told = raised.value.message + json.dumps(raised.value.metadata)
    assert not [value for value in ("anna", entry["id"], entry["sha256"], over, str(keyring.path)) if value in told]


def test_a_changed_file_is_noticed_within_a_second(keyring: Keyring, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "halfreel_runtime.tokens")
    anna = f"Bearer {keyring.add('anna', 'read')}"
    file = TokenFile(keyring.path)
    file.authenticate([anna])
    berta = f"Bearer {keyring.add('berta', 'read')}"
    revoke_tokens(keyring.path, "anna")
    time.sleep(1.05)
    assert file.authenticate([berta]).name == "berta"
    assert refused(file, anna) == "TOKEN_INVALID"
    assert [record.message for record in caplog.records] == ["tokens_reloaded"]


def test_the_file_is_not_looked_at_more_than_once_a_second(keyring: Keyring, monkeypatch: pytest.MonkeyPatch) -> None:
    authorization = f"Bearer {keyring.add('anna', 'read')}"
    file = TokenFile(keyring.path)
    looks: list[Path] = []
    monkeypatch.setattr(tokens, "signature", lambda path: looks.append(path))
    began = time.monotonic()
    for _ in range(1000):
        file.authenticate([authorization])
    assert len(looks) <= time.monotonic() - began


@pytest.mark.parametrize("broken", ["{", '{"tokens": [{}]}', None, "rights"])
def test_a_bad_new_file_leaves_the_old_tokens_good_and_is_logged_once(
    keyring: Keyring, monkeypatch: pytest.MonkeyPatch, broken: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tokens, "LOOK_INTERVAL_S", 0.0)
    anna = f"Bearer {keyring.add('anna', 'read')}"
    file = TokenFile(keyring.path)
    good = keyring.path.read_text()
    if broken is None:
        keyring.path.unlink()
    elif broken == "rights":
        keyring.path.write_text(good)
        keyring.path.chmod(0o644)
    else:
        keyring.path.write_text(broken)
    for _ in range(3):
        assert file.authenticate([anna]).name == "anna"
    assert [record.message for record in caplog.records] == ["tokens_not_reloaded"]
    keyring.path.write_text('{"tokens": []}')
    keyring.path.chmod(0o600)
    assert refused(file, anna) == "TOKEN_INVALID"


def entry(**changes: Any) -> dict[str, Any]:
    return {"id": "1", "name": "anna", "sha256": "0" * 64, "scopes": ["read"], "expires": None} | changes


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("\x00", "is not JSON"),
        ("[]", "the file: Input should be"),
        ({}, "tokens: Field required"),
        ({"tokens": [entry(scopes=["write"])]}, "tokens.0.scopes.0: Input should be 'generate', 'read' or 'admin'"),
        ({"tokens": [entry(scopes=[])]}, "tokens.0.scopes"),
        ({"tokens": [entry(name="")]}, "tokens.0.name"),
        ({"tokens": [entry(name="a b")]}, "tokens.0.name"),
        ({"tokens": [entry(sha256="secret")]}, "tokens.0.sha256"),
        ({"tokens": [entry(expires="2027-01-01T00:00:00")]}, "tokens.0.expires: Input should have timezone info"),
        ({"tokens": [entry(token="hr_x")]}, "tokens.0.token: Extra inputs are not permitted"),
        ({"tokens": [entry(), entry(id="2")]}, "two tokens have the same sha256"),
        ({"tokens": [entry(), entry(sha256="1" * 64)]}, "two tokens have the same id"),
        ({"tokens": [entry()] * (MAX_TOKEN_COUNT + 1)}, "at most 1000 items"),
    ],
)
def test_a_file_that_is_none_of_tokens_is_refused_in_one_line(tmp_path: Path, content: Any, told: str) -> None:
    path = tmp_path / "tokens.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    path.chmod(0o600)
    with pytest.raises(FileRefusedError) as raised:
        TokenFile(path)
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "secret" not in str(raised.value)


def test_as_many_tokens_as_may_be_cost_less_than_a_millisecond(keyring: Keyring) -> None:
    entries = [entry(id=str(number), sha256=f"{number:064x}") for number in range(MAX_TOKEN_COUNT)]
    keyring.path.write_text(json.dumps({"tokens": entries}))
    keyring.path.chmod(0o600)
    file = TokenFile(keyring.path)
    times = []
    for _ in range(200):
        began = time.perf_counter()
        assert refused(file, "Bearer hr_" + "a" * 43) == "TOKEN_INVALID"
        times.append(time.perf_counter() - began)
    assert sorted(times)[100] < 0.001


def test_a_full_file_takes_no_more(keyring: Keyring) -> None:
    entries = [entry(id=str(number), sha256=f"{number:064x}") for number in range(MAX_TOKEN_COUNT)]
    keyring.path.write_text(json.dumps({"tokens": entries}))
    with pytest.raises(Exception, match="has 1000 tokens, which is as many as may be"):
        keyring.add("anna", "read")
    assert len(read_tokens(keyring.path)) == MAX_TOKEN_COUNT


def test_what_the_command_writes_is_what_the_server_reads(keyring: Keyring) -> None:
    ends = datetime(2099, 1, 2, 3, 4, 5, tzinfo=UTC)
    token = add_token(keyring.path, "a.B_c-9", ["admin", "generate", "read"], ends)
    known = TokenFile(keyring.path).authenticate([f"Bearer {token}"])
    written = read_tokens(keyring.path)[0]
    assert (known.token_id, known.name, known.expires) == (written.id, "a.B_c-9", ends)
    assert known.digest.hex() == written.sha256
    assert sorted(known.scopes) == sorted(written.scopes)
