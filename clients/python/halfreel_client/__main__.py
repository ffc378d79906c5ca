"""Runs the `halfreel` command."""

from __future__ import annotations

import io
import os
import signal
import sys


def main() -> None:
    """The `halfreel` command."""
    # Before the imports, which take a second: until a command has begun, there is nothing to end in good order.
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # gRPC tells of every connection that ends, on stderr
    from halfreel_client.command.app import app

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal in another encoding shows a question mark rather than ends the command.
            stream.reconfigure(errors="replace")
    app()


if __name__ == "__main__":
    main()
