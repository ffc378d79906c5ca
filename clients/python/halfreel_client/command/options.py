"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from halfreel_client.channel import DEFAULT_ADDRESS
from halfreel_client.supervisor.running import Running, default_data_folder

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
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line, for machines.")]


def data_folder_of(data_dir: Path | None) -> Path:
    """The folder to use, absolute."""
    return (data_dir or default_data_folder()).expanduser().resolve()


def address_of(address: str | None, data_dir: Path | None) -> str:
    """The gateway to call: the one that was named, else the one that runs on this machine."""
    if address:
        return address
    running = Running.read(data_folder_of(data_dir))
    return running.addresses.get("gateway", DEFAULT_ADDRESS) if running else DEFAULT_ADDRESS
