"""A gateway that is there, or one line on what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from halfreel_client.client import Client
from halfreel_client.command.endpoint import Endpoint
from halfreel_client.command.exits import CommandError, ExitCode

REACH_S = 2.0
# One call is tried again for so long: a person waits for it.
_PATIENCE_S = 3.0


@contextmanager
def calling(endpoint: Endpoint) -> Iterator[Client]:
    """A blocking client whose gateway answers.

    Raises:
        CommandError: none does.
    """
    with Client(endpoint.address, credentials=endpoint.credentials, patience_s=_PATIENCE_S) as client:
        if not client.wait_reachable(REACH_S):
            raise unreached(endpoint)
        yield client


def unreached(endpoint: Endpoint) -> CommandError:
    """What to say when no gateway answers at an endpoint."""
    with_tls = " with a certificate that your CA has signed" if endpoint.credentials.ca_file else ""
    return CommandError(
        f"no gateway answers at {endpoint.address}{with_tls}; "
        "start one with `halfreel up`, name another with --address, "
        "or make a film without one: `halfreel make --local`",
        ExitCode.UNREACHABLE,
    )
