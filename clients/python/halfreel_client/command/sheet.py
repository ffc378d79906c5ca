"""`halfreel sheet`: a film as one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from halfreel_client.command.exits import CommandError, ExitCode


def sheet_command(
    film: Annotated[Path, typer.Argument(metavar="FILM", help="An MP4, as `make` writes it.", dir_okay=False)],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="PNG or JPEG.")] = Path("sheet.png"),
    count: Annotated[int, typer.Option(min=1, max=200, help="The most frames to show.")] = 12,
    columns: Annotated[int, typer.Option(min=1, max=20, help="Frames in a row.")] = 4,
    width_px: Annotated[int, typer.Option(min=32, max=1024, help="Width of a frame on the sheet.")] = 256,
) -> None:
    """Draws a film's frames, their times and captions, as one picture."""
    try:
        from halfreel_client.contact_sheet import NoFilmError, contact_sheet, stills
    except ModuleNotFoundError as error:
        raise CommandError(
            f"sheet needs {error.name}, which is not installed: pip install 'halfreel-client[sheet]'", ExitCode.USAGE
        ) from None
    if not film.is_file():
        raise CommandError(f"there is no film {film}", ExitCode.USAGE)
    if output.suffix.lower() not in {".png", ".jpg", ".jpeg"}:
        raise CommandError(f"--output is {output.name}; it must end in .png or .jpg", ExitCode.USAGE)
    try:
        contact_sheet(stills(film, count), min(columns, count), width_px).save(output)
    except NoFilmError as error:
        raise CommandError(str(error), ExitCode.USAGE) from None
    except OSError as error:
        raise CommandError(f"{output} can't be written: {error.strerror or error}", ExitCode.USAGE) from None
    typer.echo(f"sheet: {output}")
