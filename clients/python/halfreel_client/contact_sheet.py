"""A film as one picture: frames in equal steps of time, each with its time and what its caption says.

It knows MP4 files, and nothing of servers. Needs the extra `sheet` (PyAV and Pillow).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import av
from PIL import Image, ImageDraw, ImageFont

GAP_PX = 8
CAPTION_PX = 34
_CAPTION_LINES = 2
_BACKGROUND, _INK, _FAINT = (24, 24, 27), (236, 236, 238), (150, 150, 158)


class NoFilmError(Exception):
    """The file holds no film that plays."""


@dataclass(frozen=True)
class Still:
    """One frame of a film, and what is said then."""

    at_s: float
    picture: Image.Image
    caption: str


def stills(film: Path, count: int) -> list[Still]:
    """At most `count` frames in equal steps of time, the first one first.

    Args:
        film: an MP4.
        count: at least 1.

    Raises:
        NoFilmError: the file is no film, or has no frame.
    """
    try:
        with av.open(str(film)) as container:
            cues = _cues(container) if container.streams.subtitles else []
        with av.open(str(film)) as container:
            frames = [(float(frame.time or 0), frame.to_image()) for frame in container.decode(video=0)]
    except (av.FFmpegError, IndexError) as error:
        raise NoFilmError(f"{film.name} is no film that plays: {error}") from None
    if not frames:
        raise NoFilmError(f"{film.name} has no frames")
    wanted = min(count, len(frames))
    picked = [frames[index * len(frames) // wanted] for index in range(wanted)]
    return [Still(at_s, picture, _said(cues, at_s)) for at_s, picture in picked]


def contact_sheet(shown: list[Still], columns: int, width_px: int) -> Image.Image:
    """The stills in rows, each of a width, its time and caption below it.

    Args:
        shown: at least one still.
        columns: stills in a row.
        width_px: of each still.
    """
    first = shown[0].picture
    height_px = round(width_px * first.height / first.width)
    rows = -(-len(shown) // columns)
    cell_px = (width_px + GAP_PX, height_px + CAPTION_PX + GAP_PX)
    sheet = Image.new("RGB", (columns * cell_px[0] + GAP_PX, rows * cell_px[1] + GAP_PX), _BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=11)
    for index, still in enumerate(shown):
        x, y = (GAP_PX + index % columns * cell_px[0], GAP_PX + index // columns * cell_px[1])
        # Pixels of a tiny model stay visible pixels; those of a large one are made smaller smoothly.
        sampling = Image.Resampling.NEAREST if width_px >= first.width else Image.Resampling.LANCZOS
        sheet.paste(still.picture.resize((width_px, height_px), sampling), (x, y))
        time = f"{still.at_s:.1f} s  "
        pen.text((x, y + height_px + 3), time, _FAINT, font)
        indent = pen.textlength(time, font)
        for line, text in enumerate(_wrapped(pen, still.caption, font, width_px, indent)):
            pen.text((x + (0 if line else indent), y + height_px + 3 + 14 * line), text, _INK, font)
    return sheet


def _cues(container: av.container.InputContainer) -> list[tuple[float, float, str]]:
    """Begin, end and text of every caption; 3GPP timed text is two bytes of length, then the text."""
    cues = []
    for packet in container.demux(container.streams.subtitles[0]):
        data = bytes(packet)
        text = data[2 : 2 + int.from_bytes(data[:2], "big")].decode(errors="replace")
        if text and packet.pts is not None and packet.time_base is not None:
            begin_s = float(packet.pts * packet.time_base)
            cues.append((begin_s, begin_s + float((packet.duration or 0) * packet.time_base), text))
    return cues


def _said(cues: list[tuple[float, float, str]], at_s: float) -> str:
    return next((text for begin_s, end_s, text in cues if begin_s <= at_s + 1e-6 < end_s), "")


def _wrapped(
    pen: ImageDraw.ImageDraw,
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    width_px: int,
    indent: float,
) -> list[str]:
    """The words in lines that fit; what does not fit into the lines there are ends in an ellipsis."""
    lines, words = [""], text.split()
    for index, word in enumerate(words):
        longer = f"{lines[-1]} {word}".strip()
        room = width_px - (indent if len(lines) == 1 else 0)
        if pen.textlength(longer, font) <= room:
            lines[-1] = longer
        elif len(lines) < _CAPTION_LINES:
            lines.append(word)
        else:
            lines[-1] += "…" if index < len(words) else ""
            break
    return lines
