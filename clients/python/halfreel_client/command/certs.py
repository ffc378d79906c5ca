"""`halfreel certs`: certificates for one's own servers and clients."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from halfreel_client.command.exits import CommandError, ExitCode

_DEFAULT_HOSTS = ("localhost", "127.0.0.1", "::1")


def certs_command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where they go; made if it is not there.")],
    host: Annotated[
        list[str] | None,
        typer.Option(
            "--host",
            metavar="NAME",
            help=f"A name or an IP address by which servers are called; may be given again, and replaces the default: "
            f"{', '.join(_DEFAULT_HOSTS)}.",
            show_default=False,
        ),
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=3650, help="How long the server's and the client's are valid.")] = 365,
) -> None:
    """Makes a CA (once), and a server's and a client's certificate signed by it (anew each time).

    Running servers take new ones up without a restart. Keep ca-key.pem to yourself: who has it can be any server.
    """
    try:
        from halfreel_client.certificates import CertificatesError, make_certificates
    except ImportError:
        raise CommandError(
            "certificates need the package cryptography: pip install 'halfreel-client[certs]'", ExitCode.FAILED
        ) from None
    try:
        files = make_certificates(folder.expanduser(), host or _DEFAULT_HOSTS, days)
    except CertificatesError as error:
        raise CommandError(str(error), ExitCode.USAGE) from None
    for name, what in (
        ("ca", "clients and servers are told whom to believe by it"),
        ("server", "tls_certificate_file and tls_key_file of the servers"),
        ("client", "of a client, for servers with tls_client_ca_file"),
    ):
        typer.echo(f"{files.certificate(name)}  {files.key(name).name}  {what}")
