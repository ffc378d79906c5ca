"""How the command ends: its exit codes, and what is said of errors."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import typer

from halfreel_client.credentials import CredentialsError
from halfreel_client.display.as_json import as_json, json_line
from halfreel_client.display.printable import printable
from halfreel_client.errors import (
    AlreadyExists,
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    HalfreelError,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)


class ExitCode(IntEnum):
    """What the command's end means."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    NOT_FOUND = 4
    EXHAUSTED = 5
    CANCELLED = 130


EXIT_CODES_TEXT = (
    "Exit codes: 0 done · 1 the film failed, or the work could not be done · 2 wrong usage or input · "
    "3 no server could be reached · 4 not found · 5 a memory, a disk or a queue is full · 130 cancelled."
)

_BY_ERROR: tuple[tuple[type[HalfreelError], ExitCode], ...] = (
    (InvalidArgument, ExitCode.USAGE),
    (FailedPrecondition, ExitCode.USAGE),
    (AlreadyExists, ExitCode.USAGE),
    (NotFound, ExitCode.NOT_FOUND),
    (ResourceExhausted, ExitCode.EXHAUSTED),
    (Unavailable, ExitCode.UNREACHABLE),
    (DeadlineExceeded, ExitCode.UNREACHABLE),
    (Cancelled, ExitCode.CANCELLED),
)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_JSON_KEY = "halfreel.json"


class CommandError(Exception):
    """The command cannot do what it was asked; `message` is one line for a person."""

    def __init__(self, message: str, code: ExitCode) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


def speak_json(context: typer.Context) -> None:
    """From now on errors are told as JSON too, on stdout as everything else."""
    context.meta[_JSON_KEY] = True


def exit_code_of(error: HalfreelError) -> ExitCode:
    """The exit code that an error of a call leads to."""
    return next((code for kind, code in _BY_ERROR if isinstance(error, kind)), ExitCode.FAILED)


@contextmanager
def telling_errors(context: typer.Context) -> Iterator[None]:
    """Turns what a command raises into one line and an exit code."""
    try:
        yield
    except CommandError as error:
        _end(context, error.message, error.code, {"message": error.message})
    except HalfreelError as error:
        _end(context, _sentence(error), exit_code_of(error), as_json(error))
    except CredentialsError as error:
        _end(context, str(error), ExitCode.USAGE, {"message": str(error)})
    except BrokenPipeError:
        # The reader of our output has left, as `head` does. Nothing more can be said to it.
        sys.stdout = None  # or Python would try to flush it, and complain
        raise typer.Exit(ExitCode.FAILED) from None
    except OSError as error:
        text = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
        code = ExitCode.EXHAUSTED if error.errno in _FULL else ExitCode.FAILED
        _end(context, text, code, {"message": text})
    except KeyboardInterrupt:
        _end(context, "cancelled", ExitCode.CANCELLED, {"message": "cancelled"})


def _sentence(error: HalfreelError) -> str:
    text = error.message
    if error.retry_after_s is not None:
        text += f"; try again in {error.retry_after_s:g} s"
    return f"{text} [{error.reason}]" if error.reason and error.reason != "UNREACHABLE" else text


def _end(context: typer.Context, text: str, code: ExitCode, details: object) -> None:
    if context.meta.get(_JSON_KEY):
        typer.echo(json_line({"event": "error", "exit_code": int(code), "error": as_json(details)}))
    typer.secho(f"halfreel: {printable(text)}", err=True, fg=typer.colors.RED)
    raise typer.Exit(int(code)) from None
