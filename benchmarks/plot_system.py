"""Draws what a card held while films were made: one panel a film, with its parts and the models' turns.

It does not know where the samples come from.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from system_record import GIB, Record

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 1200, 260, 70, 58, 62
COLOURS = {"llm": "#d04000", "video": "#0050c0"}
_TURN_PX = 12
# What tells of the film itself; stages are ticks without words.
_WORDS = ("film", "scene")


def draw(records: Sequence[Record], path: Path) -> None:
    """Writes a PNG of all films, one above the other."""
    panel = TOP + HEIGHT + BOTTOM
    picture = Image.new("RGB", (LEFT + WIDTH + 40, max(1, len(records)) * panel), "white")
    for number, record in enumerate(records):
        _panel(ImageDraw.Draw(picture), record, number * panel + TOP)
    picture.save(path)


def _panel(pen: ImageDraw.ImageDraw, record: Record, top: int) -> None:
    end_s = max([at_s for at_s, _ in record.samples] + [0.001])
    peak = max([used for _, used in record.samples] + [0])
    most = 1.05 * max(record.cap_bytes, peak)

    def x(at_s: float) -> float:
        return LEFT + WIDTH * at_s / end_s

    def y(used: float) -> float:
        return top + HEIGHT * (1 - used / most)

    title = (
        f"{record.card_gib} GiB card: used by the system, GiB; at most {peak / GIB:.2f} of {record.cap_bytes / GIB:.1f}"
    )
    pen.text((LEFT, top - 50), title, fill="black", font_size=17)
    pen.rectangle((LEFT, top, LEFT + WIDTH, top + HEIGHT), outline="#888888")
    for part in range(5):
        used = record.cap_bytes * part / 4
        pen.text((LEFT - 6, y(used)), f"{used / GIB:.1f}", "black", None, "rm", font_size=13)
        pen.line((LEFT, y(used), LEFT + WIDTH, y(used)), fill="#eeeeee")
    marks = [mark for mark in record.marks if mark[1] in _WORDS and not mark[2].endswith("queued")]
    for place, (at_s, _, text) in enumerate(marks):
        pen.line((x(at_s), top, x(at_s), top + HEIGHT), fill="#bbbbbb")
        anchor = "ra" if at_s > 0.9 * end_s else "la"
        beside = -3 if anchor == "ra" else 3
        pen.text((x(at_s) + beside, top + 20 + 13 * (place % 14)), text, "#666666", None, anchor, font_size=12)
    for at_s, kind, _ in record.marks:
        if kind == "stage":
            pen.line((x(at_s), top + HEIGHT - 5, x(at_s), top + HEIGHT), fill="#888888")
    columns: dict[int, int] = {}
    for at_s, used in record.samples:  # the largest of each column, so that no peak is lost
        columns[int(x(at_s))] = max(columns.get(int(x(at_s)), 0), used)
    points = [(column, y(used)) for column, used in sorted(columns.items())]
    if len(points) > 1:
        pen.line(points, fill="#208020", width=2)
    pen.line((LEFT, y(record.cap_bytes), LEFT + WIDTH, y(record.cap_bytes)), fill="#c00000", width=2)
    for row, (name, colour) in enumerate(COLOURS.items()):
        base = top + HEIGHT + 6 + row * (_TURN_PX + 6)
        pen.text((LEFT - 6, base + _TURN_PX / 2), name, colour, None, "rm", font_size=13)
        _turns(pen, record, name, colour, base, x)
    pen.text((LEFT + WIDTH, top + HEIGHT + 42), f"{end_s:.1f} s", "black", None, "ra", font_size=13)
    pen.text((LEFT, top + HEIGHT + 42), "bars: whose model is on the card", "black", None, "la", font_size=13)


def _turns(pen: ImageDraw.ImageDraw, record: Record, name: str, colour: str, base: int, x: Any) -> None:
    """Bars where a model is awake."""
    rows = [row for row in record.states if row["server"] == name]
    for row, after in itertools.pairwise(rows):
        if row["state"] == "awake":
            pen.rectangle((x(row["at_s"]), base, x(after["at_s"]), base + _TURN_PX), fill=colour)
