"""Makes the README's pictures of a terminal: runs `halfreel make --local` and draws what it shows, live and done.

It draws what the command's own view renders; it does not know what that says.
"""

from __future__ import annotations

import argparse
import asyncio
import html
import io
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, RenderableType
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from halfreel_client.command.endpoint import Endpoint
from halfreel_client.command.local_servers import local_servers
from halfreel_client.command.making import Order, make
from halfreel_client.credentials import Credentials
from halfreel_client.display.live_view import LiveView
from halfreel_client.display.summary import summary_of
from halfreel_client.display.summary_table import summary_tables
from halfreel_client.film import Film
from halfreel_client.film_events import FilmEvent, SceneStep
from halfreel_client.film_settings import FilmSettings
from halfreel_client.memory import ServerMemory

IMAGES = Path(__file__).with_name("images")
IDEA = "a yellow star over the sea, then a red circle in the snow"
COLUMNS = 104
CELL_PX = 12.2  # of rich's pictures: a character's width
THEME = TerminalTheme(
    (24, 25, 31),
    (214, 218, 226),
    [(24, 25, 31), (224, 98, 102), (98, 189, 104), (214, 176, 92),
     (106, 152, 224), (190, 110, 208), (70, 182, 190), (214, 218, 226)],
)  # fmt: skip
# rich's own form, with the reader's fonts: it would fetch one from the web.
FORM = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
    <style>
    .{unique_id}-matrix {{
        font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, DejaVu Sans Mono, monospace;
        font-size: {char_height}px;
        line-height: {line_height}px;
    }}
    .{unique_id}-title {{
        font-size: 18px;
        font-weight: bold;
        font-family: arial;
    }}
    {styles}
    </style>
    <defs>
    <clipPath id="{unique_id}-clip-terminal">
      <rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
    </clipPath>
    {lines}
    </defs>
    {chrome}
    <g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
    {backgrounds}
    <g class="{unique_id}-matrix">
    {matrix}
    </g>
    </g>
</svg>
"""


class Camera(LiveView):
    """The command's view, of which a picture is taken in the midst of the second scene and one at the end."""

    def __init__(self) -> None:
        super().__init__(Console(file=io.StringIO(), force_terminal=True, width=COLUMNS, highlight=False), IDEA)
        self._above: list[Text] = [Text(f'$ halfreel make --local "{IDEA}"')]
        self.pictures: dict[str, str] = {}

    def accepted(self, film: Film) -> None:
        """Printed above."""
        super().accepted(film)
        self._above.append(Text(f"film {film.film_id}, seed {film.settings.seed}", style="dim"))

    def event(self, event: FilmEvent) -> None:
        """One more thing that happened; the picture is taken half-way through the second scene's steps."""
        super().event(event)
        step = event.what
        if isinstance(step, SceneStep) and step.scene_index == 1 and step.step_index == (step.step_count + 1) // 2:
            self._take("live", self._render())

    def done(self, film: Film, memory: Sequence[ServerMemory], path: Path | None) -> None:
        """The end."""
        self._take("done", summary_tables(film, summary_of(film, memory), path))

    def _take(self, name: str, shown: RenderableType) -> None:
        console = Console(record=True, file=io.StringIO(), force_terminal=True, width=COLUMNS, highlight=False)
        for line in self._above:
            console.print(line)
        console.print(shown)
        self.pictures[name] = console.export_svg(title="halfreel make", theme=THEME, unique_id=name, code_format=FORM)


def placed(picture: str) -> str:
    """The picture with every text where its first letter is: some programs leave out the spaces before it."""

    def moved(text: re.Match[str]) -> str:
        before, x, between, after, words = text.groups()
        inner = words.replace("&#160;", " ").rstrip()
        begin = len(inner) - len(inner.lstrip())
        if not inner:
            return ""
        count = len(html.unescape(inner)) - begin
        x_px, length_px = float(x) + begin * CELL_PX, count * CELL_PX
        place = f'{before}x="{x_px:.1f}"{between}textLength="{length_px:.1f}"{after}'
        return f"<text{place}>{inner.strip().replace(' ', '&#160;')}</text>\n"

    text = re.sub(r'<text([^>]*)x="([\d.]+)"([^>]*)textLength="[\d.]+"([^>]*)>([^<]*)</text>', moved, picture)
    return "\n".join(line.rstrip() for line in text.splitlines() if line.strip()) + "\n"


def main() -> int:
    """Makes the film and writes the pictures."""
    parser = argparse.ArgumentParser(description="Makes the README's pictures of a terminal from a film that is made.")
    parser.add_argument("film", type=Path, help="the MP4 to write; the picture shows its path")
    film = parser.parse_args().film
    with tempfile.TemporaryDirectory() as data, Camera() as camera, local_servers(Path(data), Credentials()) as servers:
        order = Order(IDEA, FilmSettings(), film.resolve())
        asyncio.run(make(order, camera, Endpoint("", Credentials()), servers))
    for name, picture in camera.pictures.items():
        (IMAGES / f"terminal-{name}.svg").write_text(placed(picture), encoding="utf-8")
    return 0 if set(camera.pictures) == {"live", "done"} else 1


if __name__ == "__main__":
    sys.exit(main())
