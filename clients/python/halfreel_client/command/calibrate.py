"""`halfreel calibrate`: measures this machine's GPU, so that plans are of this very card."""

from __future__ import annotations

import typer

from halfreel_client.command.exits import speak_json
from halfreel_client.command.options import Json
from halfreel_client.command.service_module import run_module
from halfreel_client.display.amounts import bytes_text
from halfreel_client.display.as_json import json_line


def calibrate_command(context: typer.Context, json: Json = False) -> None:
    """Measures what this machine's GPU takes for the video model as it is configured, and keeps it for all plans.

    Takes a minute or two, and the GPU for itself: stop the servers first.
    """
    if json:
        speak_json(context)
    for line in run_module("halfreel_video.calibrate", []):
        if json:
            typer.echo(json_line(line))
        elif "sample" in line:
            sample = line["sample"]
            beside = bytes_text(int(sample["bytes_beside"]))
            typer.echo(f"{sample['line']}: {beside} beside the weights, {sample['seconds']:.2f} s")
        else:
            typer.echo(f"calibrated {line['card']} in {line['dtype']}; kept in {line['file']}")
