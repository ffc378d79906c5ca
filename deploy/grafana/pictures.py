"""Draws the dashboards as pictures, from a Prometheus's answers to the panels' own queries, by matplotlib.

For documents, on a machine where Grafana does not run: what is drawn is not Grafana's own face, but every figure is the
answer to the query that Grafana would send. It does not know what is shown.

    .venv/bin/python deploy/grafana/pictures.py http://127.0.0.1:9090 docs/images --minutes 5
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
import urllib.parse
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import dates, pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter
from PIL import Image

FOLDER = Path(__file__).parent / "provisioning" / "dashboards"
# Grafana's own variables, as it fills them in where all is picked.
PICKED = {"$__rate_interval": "1m", "$service": ".*", "$gpu": ".*", "$model": ".*"}
COLUMNS = 24
_INCHES_PER_COLUMN, _INCHES_PER_ROW = 0.62, 0.34
_POINTS = 150
_SHORT_S = 900
_MAX_SERIES = 9
_LEGEND_CHARACTERS = 26
_STEPS = ((1024**4, "TiB"), (1024**3, "GiB"), (1024**2, "MiB"), (1024, "KiB"))
_BACK, _PANEL, _INK, _FAINT = "#111217", "#181b1f", "#d8d9da", "#6e7077"
_COLOURS = (
    "#73bf69",
    "#f2cc0c",
    "#5794f2",
    "#ff9830",
    "#e02f44",
    "#b877d9",
    "#37872d",
    "#8ab8ff",
    "#fade2a",
    "#a352cc",
)


class Source:
    """A Prometheus, asked about one span of time."""

    def __init__(self, url: str, begin: float, end: float) -> None:
        self._url = url
        self.begin, self.end = begin, end
        self.step = max(1.0, (end - begin) / _POINTS)

    def over_time(self, expr: str) -> list[Any]:
        """Series over the whole span."""
        return self._ask("query_range", query=expr, start=self.begin, end=self.end, step=self.step)

    def at_end(self, expr: str) -> list[Any]:
        """Series at the end of the span."""
        return self._ask("query", query=expr, time=self.end)

    def _ask(self, path: str, **arguments: object) -> list[Any]:
        url = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(arguments)}"
        with urllib.request.urlopen(url, timeout=30) as reply:  # noqa: S310 - the address is the caller's own
            return list(json.load(reply)["data"]["result"])


def text_of(value: float, unit: str) -> str:
    """A figure as Grafana would write it."""
    if not math.isfinite(value):
        return "-"
    if unit == "bytes":
        for size, name in _STEPS:
            if abs(value) >= size:
                return f"{value / size:.1f} {name}"
        return f"{value:.0f} B"
    if unit == "percentunit":
        return f"{value:.0%}"
    if unit == "s":
        return f"{value * 1000:.0f} ms" if abs(value) < 1 else f"{value:.1f} s"
    suffix = {"watt": " W", "celsius": " °C", "joule": " J", "reqps": " /s", "cps": " /s", "ops": " /s"}.get(unit, "")
    if unit == "joule" and abs(value) >= 1000:
        return f"{value / 1000:.1f} kJ"
    return f"{value:.3g}{suffix}" if abs(value) < 1000 else f"{value:,.0f}{suffix}"


def with_gaps(points: list[tuple[float, float]], step: float) -> list[tuple[float, float]]:
    """The points, and NaN where some are missing, so that no line is drawn there."""
    filled: list[tuple[float, float]] = []
    for at, value in points:
        if filled and at - filled[-1][0] > 1.5 * step:
            filled.append((filled[-1][0] + step, math.nan))
        filled.append((at, value))
    return filled


def named(legend: str, labels: dict[str, str]) -> str:
    """A legend with its labels filled in."""
    text = re.sub(r"{{(\w+)}}", lambda match: labels.get(match[1], ""), legend).strip() or "value"
    text = re.sub(r"(GPU-\w{8})[-\w]+|127\.0\.0\.1", r"\1", text).replace("Service/", "/")
    return text if len(text) <= _LEGEND_CHARACTERS else f"{text[: _LEGEND_CHARACTERS - 1]}…"


def filled_in(expr: str) -> str:
    """A query without Grafana's variables."""
    for name, value in PICKED.items():
        expr = expr.replace(name, value)
    return expr


def lines(axes: Axes, panel: dict[str, Any], source: Source) -> None:
    """Lines over time, the largest ones where there are too many."""
    unit, found = panel["fieldConfig"]["defaults"]["unit"], []
    for target in panel["targets"]:
        for series in source.over_time(filled_in(target["expr"])):
            points = with_gaps([(at, float(value)) for at, value in series["values"]], source.step)
            label = named(target["legendFormat"], series["metric"])
            found.append((max((value for _, value in points if math.isfinite(value)), default=0.0), label, points))
    found.sort(key=lambda each: -each[0])
    found = [each for each in found if each[0] > 0] or found[:2]
    stacked = panel["fieldConfig"]["defaults"]["custom"].get("stacking", {}).get("mode") == "normal"
    for number, (_, label, points) in enumerate(found[:_MAX_SERIES]):
        times = [datetime.fromtimestamp(at, UTC) for at, _ in points]
        colour = _COLOURS[number % len(_COLOURS)]
        values = [value for _, value in points]
        axes.plot(times, values, color=colour, linewidth=1.1, label=label)  # type: ignore[arg-type]
        if stacked or len(found) == 1:
            axes.fill_between(times, values, color=colour, alpha=0.12)  # type: ignore[arg-type]
    axes.set_ylim(bottom=0)
    if axes.get_ylim()[1] < 1e-9 or not any(each[0] for each in found):
        axes.set_ylim(0, 1)
    axes.set_xlim(datetime.fromtimestamp(source.begin, UTC), datetime.fromtimestamp(source.end, UTC))  # type: ignore[arg-type]
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: text_of(value, unit)))
    short = source.end - source.begin < _SHORT_S
    axes.xaxis.set_major_formatter(dates.DateFormatter("%H:%M:%S" if short else "%H:%M"))
    axes.xaxis.set_major_locator(dates.AutoDateLocator(minticks=3, maxticks=6))
    axes.grid(color="#2c3235", linewidth=0.6)
    shown = min(len(found), _MAX_SERIES)
    if not shown:
        return
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.13), ncols=3 if shown > 4 else 2, fontsize=5.5, frameon=False,
                labelcolor=_INK, handlelength=1, columnspacing=0.8, labelspacing=0.2)  # fmt: skip


def figure(axes: Axes, panel: dict[str, Any], source: Source) -> None:
    """One large figure."""
    unit = panel["fieldConfig"]["defaults"]["unit"]
    found = source.at_end(filled_in(panel["targets"][0]["expr"]))
    value = text_of(float(found[0]["value"][1]), unit) if found else "no data"
    axes.text(0.5, 0.45, value, color="#73bf69", fontsize=22, ha="center", va="center", transform=axes.transAxes)
    axes.axis("off")


def bars(axes: Axes, panel: dict[str, Any], source: Source) -> None:
    """Horizontal bars of this moment."""
    unit, found = panel["fieldConfig"]["defaults"]["unit"], []
    for target in panel["targets"]:
        found += [
            (named(target["legendFormat"], series["metric"]), float(series["value"][1]))
            for series in source.at_end(filled_in(target["expr"]))
        ]
    found = sorted(found)[:16]
    axes.barh([name for name, _ in found], [value for _, value in found], color="#5794f2", height=0.6)
    axes.invert_yaxis()
    axes.set_xlim(0, max((value for _, value in found if math.isfinite(value)), default=0) * 1.25 or 1)
    for number, (_, value) in enumerate(found):
        axes.text(value, number, f" {text_of(value, unit)}", color=_INK, fontsize=6, va="center")
    axes.xaxis.set_visible(False)


def table(axes: Axes, panel: dict[str, Any], source: Source) -> None:
    """The labels of every series, one line each."""
    found = source.at_end(filled_in(panel["targets"][0]["expr"]))
    names = sorted({name for series in found for name in series["metric"]})
    axes.axis("off")
    if not found:
        axes.text(0.5, 0.5, "no data", color=_FAINT, ha="center", transform=axes.transAxes)
        return
    cells = sorted([series["metric"].get(name, "") for name in names] for series in found)[:14]
    made = axes.table(cellText=cells, colLabels=names, loc="upper left", cellLoc="left", edges="horizontal")
    made.auto_set_font_size(False)
    made.set_fontsize(6.5)
    for cell in made.get_celld().values():
        cell.get_text().set_color(_INK)
        cell.set_edgecolor("#2c3235")


KINDS = {"timeseries": lines, "stat": figure, "bargauge": bars, "table": table}


def draw(board: dict[str, Any], source: Source, path: Path, note: str) -> None:
    """One dashboard as a PNG, with a note beside its title."""
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
    inches = COLUMNS * _INCHES_PER_COLUMN, (height + 1.5) * _INCHES_PER_ROW
    picture = pyplot.figure(figsize=inches, facecolor=_BACK, dpi=110)
    total = height + 1.5
    picture.text(0.01, 1 - 0.7 / total, board["title"], color=_INK, fontsize=13, va="center")
    picture.text(0.99, 1 - 0.7 / total, note, color=_FAINT, fontsize=7.5, va="center", ha="right")
    for panel in board["panels"]:
        place = panel["gridPos"]
        x, top = place["x"] / COLUMNS, 1 - (place["y"] + 1.5) / total
        if panel["type"] == "row":
            picture.text(
                x + 0.01, top - 0.5 / total, panel["title"], color=_INK, fontsize=10, va="center", weight="bold"
            )
            continue
        width, tall = place["w"] / COLUMNS, place["h"] / total
        gap_x, gap_y = 0.004, 0.12 / total
        back = picture.add_axes((x + gap_x, top - tall + gap_y, width - 2 * gap_x, tall - 2 * gap_y))
        back.set_facecolor(_PANEL)
        back.set_xticks([])
        back.set_yticks([])
        for edge in back.spines.values():
            edge.set_color("#2c3235")
        back.text(
            0.02, 1 - 0.45 / place["h"], panel["title"], color=_INK, fontsize=8, va="center", transform=back.transAxes
        )
        left = {"bargauge": 0.3, "timeseries": 0.13}.get(panel["type"], 0.03)
        below = {"timeseries": 0.27}.get(panel["type"], 0.04)
        axes = picture.add_axes(
            (x + gap_x + left * width, top - tall * (1 - below), width * (0.97 - left) - gap_x, tall * (0.86 - below))
        )
        axes.set_facecolor(_PANEL)
        axes.tick_params(colors=_FAINT, labelsize=6, length=2)
        for edge in axes.spines.values():
            edge.set_visible(False)
        KINDS[panel["type"]](axes, panel, source)
    picture.savefig(path, facecolor=_BACK)
    pyplot.close(picture)
    with Image.open(path) as drawn:  # a third of the size, and no eye sees it
        drawn.convert("RGB").quantize(64).save(path, optimize=True)


def main() -> None:
    """Draws all four."""
    parser = argparse.ArgumentParser(description="Draws the dashboards from a Prometheus, for documents.")
    parser.add_argument("url", help="of the Prometheus, such as http://127.0.0.1:9090")
    parser.add_argument("folder", type=Path, help="where dashboard-NAME.png are written")
    parser.add_argument("--minutes", type=float, default=30, help="how far back they show (default 30)")
    parser.add_argument("--note", default="", help="what a reader should know of the figures")
    arguments = parser.parse_args()
    end = time.time()
    source = Source(arguments.url.rstrip("/"), end - arguments.minutes * 60, end)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(FOLDER.glob("*.json")):
        name = f"{path.stem.replace('halfreel', 'dashboard')}.png"
        draw(json.loads(path.read_text()), source, arguments.folder / name, arguments.note)


if __name__ == "__main__":
    main()
