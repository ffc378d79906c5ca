"""Runs the `halfreel` command."""

from __future__ import annotations

import sys
from typing import TextIO, cast

from halfreel_client.command.app import app


def main() -> None:
    """The `halfreel` command."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal in another encoding shows a question mark rather than ends the command.
        cast(TextIO, stream).reconfigure(errors="replace")  # type: ignore[attr-defined]  # they are TextIOWrapper
    app()


if __name__ == "__main__":
    main()
