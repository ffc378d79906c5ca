"""`halfreel bench`: every precision and set of levers against FP32, on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from halfreel_client.command.exits import CommandError, ExitCode, speak_json
from halfreel_client.command.options import Json
from halfreel_client.command.service_module import run_module
from halfreel_client.display.amounts import bytes_text
from halfreel_client.display.as_json import json_line

bench_app = typer.Typer(no_args_is_help=True, help="Measures the models as they are configured on this machine.")
_PLAIN_COLUMNS = 140
_HEADS = ("precision", "levers", "load", "peak", "time", "PSNR", "SSIM", "NaN")


@bench_app.callback()
def _root() -> None:
    """Measures the models as they are configured on this machine."""


@bench_app.command("precision")
def precision_command(
    context: typer.Context,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Write the table there as well.")
    ] = None,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE.png", help="Draw memory and time there.")] = None,
    json: Json = False,
) -> None:
    """Renders one clip in FP32, FP16 and BF16 with each set of levers: memory, time, and likeness to FP32.

    Likeness means something for trained models alone, such as the embedded ones. Takes the GPU for itself.
    """
    if json:
        speak_json(context)
    rows = []
    for row in run_module("halfreel_video.bench", []):
        rows.append(row)
        if json:
            typer.echo(json_line(row))
        elif sys.stderr.isatty():
            typer.echo(f"{row['precision']} {row['levers']}", err=True)
    if not rows:
        raise CommandError("nothing was measured", ExitCode.FAILED)
    cells = [_cells(row) for row in rows]
    if not json:
        table = Table(*_HEADS, box=None, pad_edge=False, header_style="bold")
        for row_cells in cells:
            table.add_row(*row_cells)
        Console(highlight=False, width=None if sys.stdout.isatty() else _PLAIN_COLUMNS).print(table)
    if markdown is not None:
        lines = [_HEADS, tuple("---" for _ in _HEADS), *cells]
        markdown.write_text("".join(f"| {' | '.join(each)} |\n" for each in lines), encoding="utf-8")
    if plot is not None:
        try:
            from halfreel_client.display.bars import draw_bars
        except ImportError:
            raise CommandError("drawing needs Pillow: pip install 'halfreel-client[sheet]'", ExitCode.USAGE) from None
        draw_bars(plot, [(f"{row['precision']} {row['levers']}", _peak(row), row.get("seconds", 0.0)) for row in rows])


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    if "failed" in row:
        return (row["precision"], row["levers"], f"{row['load_s']:.1f} s", "-", "-", "-", "-", str(row["nan_count"]))
    peak = _peak(row)
    return (
        row["precision"],
        row["levers"],
        f"{row['load_s']:.1f} s",
        bytes_text(peak) if peak else "-",
        f"{row['seconds']:.1f} s",
        f"{row['psnr_db']:.1f} dB" if row["psnr_db"] is not None else "same",
        f"{row['ssim']:.4f}",
        str(row["nan_count"]),
    )


def _peak(row: dict[str, Any]) -> int:
    """The largest reserved bytes; on a CPU, which reserves nothing, the weights."""
    return max(row.get("peak_reserved_bytes", {}).values(), default=0) or int(row.get("weight_bytes", 0))
