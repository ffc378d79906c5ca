"""The memory of model servers as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from halfreel_client.display.amounts import bytes_text
from halfreel_client.display.printable import printable
from halfreel_client.memory import DeviceKind, DeviceMemory, MemoryReport, ModelState, ServerMemory


def memory_lines(servers: Sequence[ServerMemory]) -> Table:
    """One line for each device of each server: what it holds now, and its largest since the server started."""
    table = Table.grid(padding=(0, 2))
    for server in servers:
        if server.report is None:
            table.add_row(Text(server.kind, style="bold"), Text(printable(server.problem), style="yellow"))
            continue
        for device in server.report.devices:
            table.add_row(
                Text(server.kind, style="bold"),
                Text(device_text(device), style="dim"),
                Text(_held(device)),
                Text(f"peak {bytes_text(device.process_peak.reserved_bytes)}", style="magenta"),
                Text(device.current_phase or _asleep(server.report.model_state), style="cyan"),
            )
    return table


def memory_table(servers: Sequence[ServerMemory]) -> RenderableType:
    """Every figure of every device of every server; below them what would help, and levers that are not as asked."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("server", no_wrap=True)
    table.add_column("device")
    table.add_column("model", no_wrap=True)
    names = (
        "in use",
        "others",
        "allocated",
        "reserved",
        "context",
        "request peak",
        "60 s peak",
        "peak",
        "budget",
        "left",
    )
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("phase")
    notes: list[Text] = []
    for server in servers:
        name = f"{server.kind} {server.address}"
        if server.report is None:
            table.add_row(name, Text(printable(server.problem), style="yellow"))
            continue
        for device in server.report.devices:
            table.add_row(
                name,
                device_text(device),
                state_text(server.report),
                _device_use(device, server),
                bytes_text(device.other_processes_bytes) if device.device_used_bytes else "-",
                bytes_text(device.allocated_bytes),
                bytes_text(device.reserved_bytes),
                bytes_text(device.context_bytes),
                bytes_text(device.request_peak.reserved_bytes),
                bytes_text(device.recent_peak.reserved_bytes),
                bytes_text(device.process_peak.reserved_bytes),
                bytes_text(device.budget_bytes) if device.budget_bytes else "-",
                bytes_text(device.headroom_bytes) if device.device_used_bytes or device.budget_bytes else "-",
                Text(device.current_phase or "idle", style="cyan" if device.current_phase else "dim"),
            )
        notes += _notes(name, server.report)
    return Group(table, Text(), *notes) if notes else table


def state_text(report: MemoryReport) -> Text:
    """Where the model's weights are."""
    state = report.model_state
    style = {ModelState.AWAKE: "green", ModelState.ASLEEP: "dim", ModelState.WAKE_FAILED: "red"}.get(state, "yellow")
    return Text(state.replace("_", " "), style=style)


def device_text(device: DeviceMemory) -> str:
    """The device's name, with enough of its UUID to tell two of a kind apart."""
    if device.device_kind is DeviceKind.CUDA:
        return printable(f"{device.device_name} {device.gpu_uuid[:12]}")
    return printable(f"{device.gpu_uuid} {device.device_name}")


def _asleep(state: ModelState) -> str:
    """What is worth a word of an idle server: that its model is not where requests need it."""
    return "" if state is ModelState.AWAKE else state.replace("_", " ")


def _notes(name: str, report: MemoryReport) -> list[Text]:
    helps = [
        Text.assemble(f"{name}: ", (printable(f"{each.text} [{each.code}]"), "yellow")) for each in report.suggestions
    ]
    levers = [
        Text.assemble(f"{name}: ", (printable(f"{each.lever} is {each.value}: {each.reason}"), "dim"))
        for each in report.levers
        if each.reason
    ]
    return [*helps, *levers]


def _held(device: DeviceMemory) -> str:
    if device.device_kind is DeviceKind.CUDA:
        return f"{bytes_text(device.allocated_bytes)} allocated, {bytes_text(device.reserved_bytes)} reserved"
    return f"{bytes_text(device.allocated_bytes)} resident"  # on a CPU both figures are the process's resident bytes


def _device_use(device: DeviceMemory, server: ServerMemory) -> str:
    if device.device_kind is DeviceKind.CUDA:
        return f"{bytes_text(device.device_used_bytes)} / {bytes_text(device.device_total_bytes)}"
    assert server.report is not None
    host = server.report.host
    return f"{bytes_text(host.total_bytes - host.available_bytes)} / {bytes_text(host.total_bytes)}"
