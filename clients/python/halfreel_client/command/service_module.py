"""A model server's own module, run as a process: it alone has the libraries, and this command none of them."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from halfreel_client.command.exits import CommandError, ExitCode
from halfreel_client.display.printable import printable


def run_module(module: str, flags: Sequence[str], *, good_codes: Collection[int] = (0, 1)) -> Iterator[dict[str, Any]]:
    """Runs a module and yields each line of JSON that it prints, as it comes.

    Args:
        module: such as "halfreel_video.plan".
        flags: what it is told.
        good_codes: with which it may end; 1 is a no that its lines tell.

    Raises:
        CommandError: its package is not installed, or it said in one line why it can't.
    """
    package = module.split(".")[0]
    if importlib.util.find_spec(package) is None:
        raise CommandError(f"{package} is not installed here; pip install it from its folder", ExitCode.USAGE)
    command = [sys.executable, "-m", module, *flags]
    # Into a file: a pipe that nobody reads meanwhile would stop a module that says much.
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("{"):
                    yield json.loads(line)
        errors.seek(0)
        said = errors.read().strip().splitlines()
    if process.returncode not in good_codes:
        text = said[-1] if said else f"{module} ended with code {process.returncode}"
        raise CommandError(printable(text), ExitCode.USAGE if process.returncode == ExitCode.USAGE else ExitCode.FAILED)
