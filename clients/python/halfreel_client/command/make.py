"""`halfreel make`: one sentence in, a film out."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from halfreel_client.command.endpoint import Endpoint, credentials_of, endpoint_of
from halfreel_client.command.exits import CommandError, ExitCode, speak_json
from halfreel_client.command.gateway import calling
from halfreel_client.command.interruption import run_interruptible
from halfreel_client.command.local_servers import local_servers
from halfreel_client.command.making import Order, make
from halfreel_client.command.options import Address, DataDir, Json, data_folder_of
from halfreel_client.display.as_json import as_json, json_line
from halfreel_client.display.json_view import JsonView
from halfreel_client.display.live_view import LiveView
from halfreel_client.display.plain_view import PlainView
from halfreel_client.display.view import View
from halfreel_client.film_settings import FilmSettings
from halfreel_client.memory import MemoryProfile


def make_command(
    context: typer.Context,
    idea: Annotated[str, typer.Argument(help="What the film is to show, in a sentence.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The MP4 to write; replaced if it is there.")
    ] = Path("film.mp4"),
    local: Annotated[
        bool, typer.Option("--local", help="Start the three servers on this machine for this film alone.")
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Print the film's id and leave; see `watch`.")] = False,
    scenes: Annotated[int | None, typer.Option(help="Scenes, 1 to 8. Default: as the script has it.")] = None,
    seconds: Annotated[
        int | None, typer.Option(help="Seconds of every scene, 1 to 30. Default: as the script has it.")
    ] = None,
    width: Annotated[int | None, typer.Option(help="Pixels, a multiple of 8. Default: the model's.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels, a multiple of 8. Default: the model's.")] = None,
    fps: Annotated[int | None, typer.Option(help="Frames a second, 1 to 60. Default: the model's.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps, 1 to 100. Default: the model's.")] = None,
    motion: Annotated[int | None, typer.Option(help="How much moves, 1 to 255. Default: by the scene.")] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Largest guidance scale, 1 to 20. Default: the model's.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Freedom of the script, 0 to 2. Default: the model's.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed makes the same film. Default: any.")] = None,
    profile: Annotated[
        Literal["auto", "saver", "balanced", "quality"] | None,
        typer.Option(help="How memory is weighed against time. Default: the video server's."),
    ] = None,
    allow_cheaper: Annotated[
        bool, typer.Option("--allow-cheaper", help="Scenes that do not fit in memory are rendered smaller.")
    ] = False,
    trade: Annotated[
        list[str] | None,
        typer.Option(help="Quality for time: partial_guidance or reuse_features; may be given twice. Default: none."),
    ] = None,
    continuous: Annotated[
        bool, typer.Option("--continuous", help="One shot: each scene starts from the last frame of the one before.")
    ] = False,
    address: Address = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Makes a film of an idea, shows how it comes about, and writes it as an MP4.

    Ctrl-C cancels the film; a second one leaves at once.
    """
    settings = FilmSettings(
        scene_count=scenes,
        scene_seconds=seconds,
        width_px=width,
        height_px=height,
        fps=fps,
        step_count=steps,
        motion_bucket=motion,
        guidance_scale=guidance,
        temperature=temperature,
        seed=seed,
        profile=None if profile is None else MemoryProfile(profile),
        allow_cheaper=allow_cheaper,
        trades=tuple(trade or ()),
        continuous=continuous,
    )
    if json:
        speak_json(context)
    if local and detach:
        raise CommandError("--local and --detach exclude each other: the servers end with the command", ExitCode.USAGE)
    if detach:
        _detach(idea, settings, endpoint_of(context, address, data_dir), json)
        return
    check_output(output)
    order = Order(idea, settings, output.resolve())
    servers = local_servers(data_folder_of(data_dir), credentials_of(context)) if local else nullcontext()
    with view_for(json, idea) as view, servers as supervisor:
        try:
            run_interruptible(
                make(order, view, endpoint_of(context, address, data_dir), supervisor),
                on_first=view.ending,
                on_second=supervisor.kill_now if supervisor is not None else lambda: None,
            )
        except asyncio.CancelledError:
            raise CommandError("cancelled", ExitCode.CANCELLED) from None


def check_output(output: Path) -> None:
    """Raises CommandError before any work is done, where the MP4 could not be written in the end."""
    folder = output.resolve().parent
    if output.is_dir():
        raise CommandError(f"--output {output}: is a folder; name a file", ExitCode.USAGE)
    if not folder.is_dir():
        raise CommandError(f"--output {output}: there is no folder {folder}", ExitCode.USAGE)
    if not os.access(folder, os.W_OK):
        raise CommandError(f"--output {output}: the folder {folder} cannot be written", ExitCode.USAGE)


def view_for(json: bool, idea: str) -> View:
    """The view that suits the output: lines for machines, a live picture on a terminal, else plain lines."""
    if json:
        return JsonView(_write_line)
    if sys.stdout.isatty():
        return LiveView(Console(highlight=False), idea)
    return PlainView(_write_line)


def _write_line(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _detach(idea: str, settings: FilmSettings, endpoint: Endpoint, json: bool) -> None:
    with calling(endpoint) as client:
        film = client.create_film(idea, settings)
    _write_line(json_line({"event": "film", "film": as_json(film), "path": None}) if json else film.film_id)
