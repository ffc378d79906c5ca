"""A gateway that is there, or one line on what to do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from halfreel_client.client import Client
from halfreel_client.command.exits import CommandError, ExitCode
from halfreel_client.credentials import Credentials

REACH_S = 2.0
# One call is tried again for so long: a person waits for it.
_PATIENCE_S = 3.0


@contextmanager
def calling(address: str) -> Iterator[Client]:
    """A blocking client whose gateway answers.

    Raises:
        CommandError: none does.
    """
    with Client(address, credentials=own_credentials(), patience_s=_PATIENCE_S) as client:
        if not client.wait_reachable(REACH_S):
            raise unreached(address)
        yield client


def own_credentials() -> Credentials:
    """What this user's environment says of certificates and token."""
    return Credentials.from_environment(os.environ)


def unreached(address: str) -> CommandError:
    """What to say when no gateway answers at `address`."""
    return CommandError(
        f"no gateway answers at {address}; start one with `halfreel up`, name another with --address, "
        "or make a film without one: `halfreel make --local`",
        ExitCode.UNREACHABLE,
    )
