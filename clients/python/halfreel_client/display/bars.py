"""Bars of memory and time as a picture, so that a benchmark can be looked at. Needs Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

_ROW_PX, _LABEL_PX, _BAR_PX, _GAP_PX = 26, 220, 420, 110
_MEMORY, _TIME, _INK = "#5b8def", "#f0a35b", "#202020"


def draw_bars(path: Path, rows: Sequence[tuple[str, int, float]]) -> None:
    """Writes a PNG with two bars for each row.

    Args:
        path: of the picture.
        rows: what each is, its bytes and its seconds.
    """
    width, height = _LABEL_PX + 2 * (_BAR_PX // 2 + _GAP_PX), _ROW_PX * (len(rows) + 1) + 8
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    second = _LABEL_PX + _BAR_PX // 2 + _GAP_PX
    draw.text((_LABEL_PX, 6), "memory (GiB)", fill=_INK)
    draw.text((second, 6), "time (s)", fill=_INK)
    most_bytes = max([size for _, size, _ in rows] or [1]) or 1
    most_s = max([seconds for _, _, seconds in rows] or [1.0]) or 1.0
    for index, (label, size, seconds) in enumerate(rows, start=1):
        top = index * _ROW_PX
        draw.text((8, top + 6), label, fill=_INK)
        for left, part, text, colour in (
            (_LABEL_PX, size / most_bytes, f"{size / 2**30:.2f}", _MEMORY),
            (second, seconds / most_s, f"{seconds:.1f}", _TIME),
        ):
            end = left + round(part * _BAR_PX / 2)
            draw.rectangle((left, top + 4, max(left + 1, end), top + _ROW_PX - 4), fill=colour)
            draw.text((end + 6, top + 6), text, fill=_INK)
    picture.save(path, "PNG")
