"""The gateway that a command calls: where it is, and how the command signs in there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import typer

from halfreel_client.channel import DEFAULT_ADDRESS
from halfreel_client.command.options import data_folder_of
from halfreel_client.credentials import Credentials
from halfreel_client.supervisor.running import Running


@dataclass(frozen=True)
class Endpoint:
    """Where to call, and with what."""

    address: str
    credentials: Credentials


def endpoint_of(context: typer.Context, address: str | None, data_dir: Path | None) -> Endpoint:
    """The gateway to call: the one that was named, else the one that runs on this machine."""
    if not address:
        running = Running.read(data_folder_of(data_dir))
        address = running.addresses.get("gateway", DEFAULT_ADDRESS) if running else DEFAULT_ADDRESS
    return Endpoint(address, credentials_of(context))


def credentials_of(context: typer.Context) -> Credentials:
    """What was given before the command's name."""
    credentials = context.find_root().obj
    assert isinstance(credentials, Credentials)
    return credentials
