"""The `halfreel` command: its commands, by name."""

from __future__ import annotations

import signal
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from halfreel_client.command.bench import bench_app
from halfreel_client.command.calibrate import calibrate_command
from halfreel_client.command.certs import certs_command
from halfreel_client.command.doctor import doctor_command
from halfreel_client.command.exits import EXIT_CODES_TEXT, telling_errors
from halfreel_client.command.films import cancel_command, delete_command, films_command, watch_command
from halfreel_client.command.make import make_command
from halfreel_client.command.options import CaFile, CertificateFile, KeyFile, TokenFile
from halfreel_client.command.plan import plan_command
from halfreel_client.command.pull import MODELS_TEXT, pull_command
from halfreel_client.command.sheet import sheet_command
from halfreel_client.command.status import status_command
from halfreel_client.command.tokens import tokens_app
from halfreel_client.command.up import down_command, up_command
from halfreel_client.credentials import Credentials


class _Commands(TyperGroup):
    """Ends every command's errors alike."""

    def invoke(self, ctx: Any) -> Any:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with telling_errors(ctx):
            return super().invoke(ctx)


app = typer.Typer(
    name="halfreel",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["--help", "-h"]},
    epilog=EXIT_CODES_TEXT,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"halfreel {version('halfreel-client')}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    ca_file: CaFile = None,
    token_file: TokenFile = None,
    certificate_file: CertificateFile = None,
    key_file: KeyFile = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Turns one sentence into a film, on the GPU you have."""
    files = (ca_file, token_file, certificate_file, key_file)
    context.obj = Credentials(*(path.expanduser() if path else None for path in files))


for _name, _command in (
    ("make", make_command),
    ("up", up_command),
    ("down", down_command),
    ("films", films_command),
    ("watch", watch_command),
    ("cancel", cancel_command),
    ("delete", delete_command),
    ("sheet", sheet_command),
    ("status", status_command),
    ("doctor", doctor_command),
    ("plan", plan_command),
    ("calibrate", calibrate_command),
    ("certs", certs_command),
):
    app.command(_name, epilog=EXIT_CODES_TEXT)(_command)
app.add_typer(bench_app, name="bench", epilog=EXIT_CODES_TEXT)
app.add_typer(tokens_app, name="tokens", epilog=EXIT_CODES_TEXT)
app.command("pull", epilog=f"{MODELS_TEXT}\n\n{EXIT_CODES_TEXT}")(pull_command)
