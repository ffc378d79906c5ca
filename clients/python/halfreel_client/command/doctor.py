"""`halfreel doctor`: what this machine can run, and why not the rest."""

from __future__ import annotations

import sys

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from halfreel_client.command.exits import CommandError, ExitCode, speak_json
from halfreel_client.command.options import DataDir, Json, data_folder_of
from halfreel_client.display.as_json import as_json, json_line
from halfreel_client.doctor.findings import Finding
from halfreel_client.doctor.machine import machine_findings
from halfreel_client.doctor.service_findings import service_findings

_PLAIN_COLUMNS = 160


def doctor_command(context: typer.Context, data_dir: DataDir = None, json: Json = False) -> None:
    """Tells what this machine can run, and why not the rest: the servers as they are configured, and large models."""
    if json:
        speak_json(context)
    findings = machine_findings(data_folder_of(data_dir))
    if not json:
        typer.echo("asking the model servers (this imports their libraries) ...", err=True)
    findings += service_findings()
    missing = [finding for finding in findings if finding.needed and not finding.ok]
    if json:
        typer.echo(json_line({"ready": not missing, "findings": as_json(findings)}))
    else:
        Console(highlight=False, width=None if sys.stdout.isatty() else _PLAIN_COLUMNS).print(_table(findings))
    if missing:
        first = missing[0]
        raise CommandError(
            f"this machine cannot make films as it is: {first.group} {first.name}: {first.detail}", ExitCode.FAILED
        )
    if not json:
        typer.echo('this machine can make films: `halfreel make --local "..."`')


def _table(findings: list[Finding]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", width=2)
    table.add_column("part", no_wrap=True)
    table.add_column("check", no_wrap=True)
    table.add_column("found", overflow="fold")
    for finding in findings:
        mark = Text("ok", style="green") if finding.ok else Text("no", style="red" if finding.needed else "yellow")
        table.add_row(mark, finding.group, finding.name, Text(finding.detail))
    return table
