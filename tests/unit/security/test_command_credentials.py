"""How the command signs in: by flags before its name, or by the environment; and at servers that it starts itself."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from every_method import server_of_everything
from sign_in import Keyring
from typer.testing import CliRunner

from halfreel_client import Credentials, CredentialsError
from halfreel_client.certificates import Files
from halfreel_client.command.app import app
from halfreel_client.supervisor.stack import Ports, local_credentials, specs
from halfreel_runtime.settings import ServerSettings

GIVEN = Credentials(Path("ca.pem"), Path("token"), Path("client.pem"), Path("client-key.pem"))


@pytest.fixture
async def address(certificates: Files, keyring: Keyring) -> AsyncIterator[str]:
    keyring.add("anna", "read")
    keyring.add("maker", "generate")
    settings = ServerSettings(
        tls_certificate_file=certificates.certificate("server"),
        tls_key_file=certificates.key("server"),
        tls_client_ca_file=certificates.certificate("ca"),
        tokens_file=keyring.path,
    )
    server, _ = server_of_everything(settings)
    await server.start()
    yield f"127.0.0.1:{server.port}"
    await server.stop(0)


async def films(address: str, *flags: str | Path, env: dict[str, str] | None = None) -> tuple[int, str]:
    own = {key: value for key, value in os.environ.items() if not key.startswith("HALFREEL_")} | (env or {})
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "halfreel_client", *map(str, flags), "films", "--address", address),
        env=own,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_by_flags_and_by_the_environment(address: str, certificates: Files, keyring: Keyring) -> None:
    files = {
        "ca-file": certificates.certificate("ca"),
        "token-file": keyring.file("anna"),
        "certificate-file": certificates.certificate("client"),
        "key-file": certificates.key("client"),
    }
    flags = [word for name, path in files.items() for word in (f"--{name}", path)]
    env = {f"HALFREEL_{name.replace('-', '_').upper()}": str(path) for name, path in files.items()}
    assert await films(address, *flags) == (0, 'no films yet; `halfreel make "..."` makes one\n')
    assert (await films(address, env=env))[0] == 0
    code, told = await films(address, "--token-file", keyring.file("maker"), env=env)
    assert (code, told) == (1, "halfreel: The token lacks the scope read. [SCOPE_MISSING]\n")
    code, told = await films(address, env={**env, "HALFREEL_TOKEN_FILE": ""})
    assert code == 1
    assert "TOKEN_MISSING" in told
    code, told = await films(address, env={**env, "HALFREEL_CERTIFICATE_FILE": "", "HALFREEL_KEY_FILE": ""})
    assert code == 3
    assert "with a certificate that your CA has signed" in told


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--token-file", "/nowhere"), "token_file /nowhere can't be read"),
        (("--ca-file", "/nowhere"), "ca_file /nowhere can't be read"),
        (("--certificate-file", "/nowhere"), "go together"),
    ],
)
async def test_a_mistake_is_told_in_one_line(address: str, flags: tuple[str, ...], told: str) -> None:
    code, output = await films(address, *flags)
    assert code == 2
    assert told in output
    assert len(output.splitlines()) == 1


def test_the_token_itself_has_no_flag() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert "--token-file" in result.output
    assert "--token " not in result.output


TLS, TOKENS = "HALFREEL_LLM_TLS_CERTIFICATE_FILE", "HALFREEL_LLM_TOKENS_FILE"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, Credentials()),
        ({"HALFREEL_VIDEO_TOKENS_FILE": "x", "HALFREEL_VIDEO_TLS_CERTIFICATE_FILE": "x"}, Credentials()),
        ({TOKENS: "x"}, Credentials(token_file=GIVEN.token_file)),
        ({TLS: "x"}, Credentials(GIVEN.ca_file, None, GIVEN.certificate_file, GIVEN.key_file)),
        ({TLS: "x", TOKENS: "x"}, GIVEN),
    ],
)
def test_a_server_that_is_started_here_is_shown_what_it_asks_for(
    environ: dict[str, str], expected: Credentials
) -> None:
    """What is meant for a gateway elsewhere is not shown to servers of this machine that ask for nothing."""
    assert local_credentials("llm", GIVEN, environ) == expected


def test_a_server_with_a_certificate_is_not_started_without_its_ca(tmp_path: Path) -> None:
    with pytest.raises(CredentialsError, match=f"{TLS} is set; name the CA"):
        specs(Ports(0, 0, 0), tmp_path, [], {TLS: "x"}, Credentials())
