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
_HEADS = ("model", "precision", "levers", "load", "peak", "time", "likeness to FP32", "", "NaN")
_TEXT, _VIDEO = "text", "video"
# Each is measured by the server's own package.
_MODULES = {_TEXT: "halfreel_llm.bench", _VIDEO: "halfreel_video.bench"}


@bench_app.callback()
def _root() -> None:
    """Measures the models as they are configured on this machine."""


@bench_app.command("precision")
def precision_command(
    context: typer.Context,
    frames: Annotated[
        int | None, typer.Option("--frames", metavar="N", help="Frames of the clip; on a CPU 2 if left out.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", metavar="N", help="Denoising steps of the clip; on a CPU 2 if left out.")
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", metavar="N", help="Tokens of each of four replies.")] = 32,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Write the table there as well.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.png", help="Draw memory, time and likeness there.")
    ] = None,
    json: Json = False,
) -> None:
    """Writes replies and renders a clip in FP32, FP16, BF16 and 8 bits: memory, time, and likeness to FP32.

    The clip is rendered with each set of levers. Likeness means something for trained models alone, such as the
    embedded ones. Takes the GPU for itself.
    """
    if json:
        speak_json(context)
    flags = {_TEXT: ["--tokens", str(tokens)], _VIDEO: []}
    for name, count in (("--frames", frames), ("--steps", steps)):
        flags[_VIDEO] += [name, str(count)] if count is not None else []
    rows = []
    for part, module in _MODULES.items():
        if not json and sys.stderr.isatty():
            typer.echo(f"{part}: FP32 first", err=True)
        for row in run_module(module, flags[part], good_codes=(0,)):
            rows.append(row)
            if json:
                typer.echo(json_line(row))
            elif sys.stderr.isatty():
                typer.echo(f"{_label(row)}: {row.get('seconds', 0.0):.1f} s", err=True)
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
            from halfreel_client.display.bars import Bar, draw_bars
        except ImportError:
            raise CommandError("drawing needs Pillow: pip install 'halfreel-client[sheet]'", ExitCode.USAGE) from None
        draw_bars(plot, [Bar(row["part"], _label(row), _peak(row), row.get("seconds"), _likeness(row)) for row in rows])


def _label(row: dict[str, Any]) -> str:
    return " ".join(each for each in (row["part"], row["precision"], row["levers"]) if each)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    began = (row["part"], row["precision"], row["levers"] or "-", f"{row['load_s']:.1f} s")
    if "failed" in row:
        return (*began, "-", "-", "-", "-", str(row["nan_count"]))
    took = (bytes_text(_peak(row)), f"{row['seconds']:.1f} s")
    if row["part"] == _TEXT:
        divergence = row["kl_nats"]
        alike = (
            f"{row['token_agreement']:.1%} of tokens",
            f"{divergence:.1e} nats" if divergence is not None else "no numbers",
        )
    else:
        alike = (f"SSIM {row['ssim']:.4f}", f"{row['psnr_db']:.1f} dB" if row["psnr_db"] is not None else "same")
    return (*began, *took, *alike, str(row["nan_count"]))


def _peak(row: dict[str, Any]) -> int:
    """The largest bytes of all phases; the weights, where none is known."""
    return max(row.get("peak_reserved_bytes", {}).values(), default=0) or int(row["weight_bytes"])


def _likeness(row: dict[str, Any]) -> float | None:
    """1 where it is as FP32; the share of equal tokens, or SSIM."""
    likeness: float | None = row.get("token_agreement" if row["part"] == _TEXT else "ssim")
    return likeness
