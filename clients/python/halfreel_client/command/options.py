"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from halfreel_client.channel import DEFAULT_ADDRESS
from halfreel_client.supervisor.running import default_data_folder

Address = Annotated[
    str | None,
    typer.Option(
        envvar="HALFREEL_ADDRESS",
        metavar="HOST:PORT",
        help=f"The gateway. Default: the one that a running `halfreel up` has started, else {DEFAULT_ADDRESS}.",
        show_default=False,
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        envvar="HALFREEL_DATA_DIR",
        metavar="FOLDER",
        help="Where films, jobs and logs of local servers are kept. Default: ~/.local/share/halfreel.",
        show_default=False,
    ),
]
CaFile = Annotated[
    Path | None,
    typer.Option(
        envvar="HALFREEL_CA_FILE",
        metavar="FILE",
        help="Use TLS, and believe servers whose certificate a CA of this file (PEM) has signed.",
        show_default=False,
    ),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        envvar="HALFREEL_TOKEN_FILE",
        metavar="FILE",
        help="Holds the token to sign in with, for your eyes alone (chmod 600).",
        show_default=False,
    ),
]
CertificateFile = Annotated[
    Path | None,
    typer.Option(
        envvar="HALFREEL_CERTIFICATE_FILE",
        metavar="FILE",
        help="Your own certificate (PEM), for servers that ask for one.",
        show_default=False,
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(envvar="HALFREEL_KEY_FILE", metavar="FILE", help="Its key (PEM).", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line, for machines.")]


def data_folder_of(data_dir: Path | None) -> Path:
    """The folder to use, absolute."""
    return (data_dir or default_data_folder()).expanduser().resolve()
