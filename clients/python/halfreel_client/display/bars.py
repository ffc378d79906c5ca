"""Bars of memory, time and likeness as a picture, so that a benchmark can be looked at. Needs Pillow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

_ROW_PX, _LABEL_PX, _BAR_PX, _VALUE_PX, _EDGE_PX = 26, 250, 210, 90, 16
_FONT_PX = 14
_INK, _LINE = "#202020", "#d8d8d8"


@dataclass(frozen=True)
class Bar:
    """One row of the picture; None leaves a bar out.

    Attributes:
        group: rows of one group share the scale of their time, for a reply is no clip.
        label: what it is.
        size_bytes: its memory.
        seconds: its time.
        likeness: 1 where its output is that of the reference.
    """

    group: str
    label: str
    size_bytes: int
    seconds: float | None
    likeness: float | None


@dataclass(frozen=True)
class _Column:
    """Bars of one figure; `text` is of the value, `scale` the largest of the rows."""

    title: str
    colour: str
    value: Callable[[Bar], float | None]
    text: Callable[[float], str]
    scale: Callable[[Sequence[float]], float]


_COLUMNS = (
    _Column("memory (MiB)", "#5b8def", lambda bar: bar.size_bytes / 2**20, "{:,.0f}".format, max),
    _Column("time (s)", "#f0a35b", lambda bar: bar.seconds, "{:.1f}".format, max),
    _Column("likeness", "#62b58f", lambda bar: bar.likeness, "{:.4f}".format, lambda _: 1.0),
)


def draw_bars(path: Path, rows: Sequence[Bar]) -> None:
    """Writes a PNG with up to three bars for each row.

    Args:
        path: of the picture.
        rows: from top to bottom; those of a group follow one another.
    """
    column_px = _BAR_PX + _VALUE_PX
    size = (_LABEL_PX + column_px * len(_COLUMNS), _ROW_PX * (len(rows) + 1) + 2 * _EDGE_PX)
    picture = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(_FONT_PX)
    for number, column in enumerate(_COLUMNS):
        draw.text((_LABEL_PX + number * column_px, _EDGE_PX), column.title, fill=_INK, font=font)
    for index, bar in enumerate(rows):
        top = _EDGE_PX + _ROW_PX * (index + 1)
        if index and bar.group != rows[index - 1].group:
            draw.line((_EDGE_PX, top, size[0] - _EDGE_PX, top), fill=_LINE)
        draw.text((_EDGE_PX, top + 5), bar.label, fill=_INK, font=font)
        for number, column in enumerate(_COLUMNS):
            values = [column.value(each) for each in rows if each.group == bar.group]
            value, left = column.value(bar), _LABEL_PX + number * column_px
            if value is None:
                draw.text((left, top + 5), "-", fill=_INK, font=font)
                continue
            most = column.scale([each for each in values if each is not None]) or 1.0
            end = left + max(1, round(value / most * _BAR_PX))
            draw.rectangle((left, top + 5, end, top + _ROW_PX - 6), fill=column.colour)
            draw.text((end + 6, top + 5), column.text(value), fill=_INK, font=font)
    picture.save(path, "PNG")
