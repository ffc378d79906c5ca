"""`halfreel tokens`: who may call one's servers."""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from halfreel_client.command.exits import CommandError, ExitCode
from halfreel_client.display.as_json import as_json, json_line
from halfreel_client.display.printable import printable
from halfreel_client.token_file import SCOPES, TokenFileError, add_token, read_tokens, revoke_tokens, write_secret

_LASTS = re.compile(r"(\d{1,5})([dh])")

tokens_app = typer.Typer(
    no_args_is_help=True, help="Makes, lists and takes back the tokens by which clients sign in to servers."
)
TokensFile = Annotated[
    Path, typer.Option("--file", metavar="FILE", help="The servers' tokens_file. It holds hashes, not tokens.")
]


@tokens_app.command("add")
def add_command(
    file: TokensFile,
    name: Annotated[str, typer.Option(help="Whose it is. Films belong to this name; a second token sees them, too.")],
    scopes: Annotated[str, typer.Option(help=f"What it may do, of {', '.join(SCOPES)}, with commas.")] = "read",
    expires: Annotated[str, typer.Option(help="How long it is good: days (90d), hours (12h), or never.")] = "90d",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write it to a file for your eyes alone, not to stdout."),
    ] = None,
) -> None:
    """Makes a token and shows it, this once: the file keeps only its hash."""
    ends = _end_of(expires)
    try:
        token = add_token(file, name, [scope.strip() for scope in scopes.split(",") if scope.strip()], ends)
    except TokenFileError as error:
        raise CommandError(str(error), ExitCode.USAGE) from None
    if output is None:
        typer.echo(token)
    else:
        write_secret(output, f"{token}\n")
        typer.echo(f"the token of {name} is in {output}")


@tokens_app.command("list")
def list_command(
    file: TokensFile, json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False
) -> None:
    """Lists the tokens, without what would let anybody use them."""
    try:
        tokens = read_tokens(file)
    except TokenFileError as error:
        raise CommandError(str(error), ExitCode.USAGE) from None
    if json:
        for token in tokens:
            shown = {"name": token.name, "scopes": list(token.scopes), "expires": token.expires}
            typer.echo(json_line(as_json({"id": token.id, **shown, "expired": token.expired})))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("id", "name", "scopes", "expires"):
        table.add_column(column, no_wrap=True)
    for token in tokens:
        ends = Text(token.expires or "never", style="red" if token.expired else "")
        table.add_row(printable(token.id), printable(token.name), ",".join(token.scopes), ends)
    Console(highlight=False, width=None if sys.stdout.isatty() else 160).print(table)


@tokens_app.command("revoke")
def revoke_command(
    file: TokensFile,
    name: Annotated[str, typer.Option(help="A name, for all its tokens, or the id of one, as `list` shows it.")],
) -> None:
    """Takes tokens back; servers refuse them within a second."""
    try:
        revoked = revoke_tokens(file, name)
    except TokenFileError as error:
        raise CommandError(str(error), ExitCode.USAGE) from None
    if not revoked:
        raise CommandError(f"{file} has no token of the name or id {name}", ExitCode.NOT_FOUND)
    for token in revoked:
        typer.echo(f"revoked {token.id} of {token.name}")


def _end_of(lasts: str) -> datetime | None:
    if lasts == "never":
        return None
    match = _LASTS.fullmatch(lasts)
    if match is None or not int(match[1]):
        raise CommandError(f"--expires {lasts}: must be days (90d), hours (12h) or never", ExitCode.USAGE)
    amount = int(match[1])
    return datetime.now(UTC) + (timedelta(days=amount) if match[2] == "d" else timedelta(hours=amount))
