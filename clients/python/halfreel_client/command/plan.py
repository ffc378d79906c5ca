"""`halfreel plan`: what memory a clip would take, on this machine's card or on one that is only imagined."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from halfreel_client.command.exits import CommandError, ExitCode, speak_json
from halfreel_client.command.options import Json
from halfreel_client.command.service_module import run_module
from halfreel_client.display.amounts import bytes_text
from halfreel_client.display.as_json import json_line

_PLAIN_COLUMNS = 120


class ProfileWord(StrEnum):
    """How memory is weighed against time."""

    AUTO = "auto"
    SAVER = "saver"
    BALANCED = "balanced"
    QUALITY = "quality"


class PrecisionWord(StrEnum):
    """The arithmetic."""

    AUTO = "auto"
    FP16 = "fp16"
    BF16 = "bf16"
    FP32 = "fp32"


def plan_command(
    context: typer.Context,
    gpu: Annotated[
        str, typer.Option("--gpu", metavar="SIZE", help="A card such as 12GiB. Default: this machine's GPU.")
    ] = "",
    budget: Annotated[
        str, typer.Option("--budget", metavar="SIZE", help="Most that the server takes of it: 12GiB, 80% or none.")
    ] = "none",
    width: Annotated[int, typer.Option("--width", help="Width of the clip in pixels.")] = 1024,
    height: Annotated[int, typer.Option("--height", help="Height of the clip in pixels.")] = 576,
    frames: Annotated[int, typer.Option("--frames", help="Frames of the clip.")] = 25,
    steps: Annotated[int, typer.Option("--steps", help="Denoising steps.")] = 25,
    profile: Annotated[ProfileWord, typer.Option("--profile", help="Memory against time.")] = ProfileWord.AUTO,
    precision: Annotated[PrecisionWord, typer.Option("--precision", help="Arithmetic.")] = PrecisionWord.AUTO,
    image: Annotated[bool, typer.Option("--image", help="The first picture is given, not drawn from words.")] = False,
    json: Json = False,
) -> None:
    """Tells what memory a clip of the default video model takes, with which levers, and what would fit if it doesn't.

    Needs no GPU, no server and no model.
    """
    if json:
        speak_json(context)
    flags = [f"--gpu={gpu}", f"--budget={budget}", f"--profile={profile}", f"--precision={precision}", "--json"]
    flags += [f"--width={width}", f"--height={height}", f"--frames={frames}", f"--steps={steps}"]
    found = next(run_module("halfreel_video.plan", [*flags, *(["--image"] if image else [])]), None)
    if found is None:
        raise CommandError("the planner said nothing", ExitCode.FAILED)
    if json:
        typer.echo(json_line(found))
    else:
        Console(highlight=False, width=None if sys.stdout.isatty() else _PLAIN_COLUMNS).print(_view(found))
    if found["plan"]["verdict"] == "PLAN_VERDICT_REFUSED":
        raise CommandError("it does not fit, and no smaller form of it does", ExitCode.EXHAUSTED)


def _view(found: dict[str, Any]) -> Group:
    plan = found["plan"]
    needed = int(plan["peak_reserved_bytes"]) + int(plan["context_bytes"])
    head = Text(
        f"{found['width_px']}x{found['height_px']} px, {found['frame_count']} frames, {found['dtype']} "
        f"on {found['card']}: "
    )
    verdict = plan["verdict"].removeprefix("PLAN_VERDICT_").lower().replace("_", " ")
    head.append(verdict, style="bold green" if verdict.startswith("fits") else "bold yellow")
    lines: list[Any] = [
        head,
        Text(
            f"needs {bytes_text(needed)} of {bytes_text(int(plan['available_bytes']))} "
            f"(context {bytes_text(int(plan['context_bytes']))} included); {_seconds(plan)} "
            f"on {found['measured_on']}, {plan['coefficients']}"
        ),
        Text(f"levers: {_levers(found['levers'])}"),
        _phases(plan),
        _prices(plan),
    ]
    for index, variant in enumerate(found["variants"]):
        lines.append(
            Text(
                f"{'would fit:' if not index else '       or:'} {variant['width_px']}x{variant['height_px']} px, "
                f"{variant['segment_frame_count']} frames at once, {_levers(variant['levers'])}, "
                f"{bytes_text(int(variant['plan']['peak_reserved_bytes']))}, {_seconds(variant['plan'])}"
            )
        )
    return Group(*lines)


def _phases(plan: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("phase")
    for name in ("weights", "work", "peak", "time"):
        table.add_column(name, justify="right")
    for phase in plan["phases"]:
        table.add_row(
            phase["phase"],
            bytes_text(int(phase["resident_bytes"])),
            bytes_text(int(phase["activation_bytes"])),
            bytes_text(int(phase["peak_reserved_bytes"])),
            _seconds(phase),
        )
    return table


def _prices(plan: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("lever")
    for name in ("saves", "costs", ""):
        table.add_column(name, justify="right")
    for price in plan["lever_prices"]:
        saved = int(price["saved_bytes"])
        table.add_row(
            f"{price['lever']} {price['value']}",
            bytes_text(saved) if saved > 0 else "-",
            _seconds(price, "added_duration"),
            "chosen" if price["chosen"] else "",
        )
    return table


def _levers(levers: dict[str, Any]) -> str:
    told = [f"decode chunk {levers['decode_chunk_frame_count']}", levers["attention_backend"]]
    if levers["feed_forward_chunk_count"] > 1:
        told.append(f"feed-forward in {levers['feed_forward_chunk_count']}")
    words = {"split_guidance": "split guidance", "offload_idle_parts": "offload", "stream_weights": "streamed weights"}
    return ", ".join([*told, *(word for name, word in words.items() if levers[name])])


def _seconds(message: dict[str, Any], name: str = "duration") -> str:
    text = message.get(name)
    return f"{float(text.removesuffix('s')):.1f} s" if text else "-"
