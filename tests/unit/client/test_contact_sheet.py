"""A film as one picture: the right frames at the right times, with what is said then."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from typer.testing import CliRunner

from halfreel_client.command.app import app
from halfreel_client.contact_sheet import NoFilmError, contact_sheet, stills
from halfreel_gateway.join import Part, join

FPS = 4
COLOURS = [(200, 30, 30), (30, 30, 200)]


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips of one second, one red and one blue, joined as the gateway joins them."""
    folder = tmp_path_factory.mktemp("film")
    parts = []
    for index, colour in enumerate(COLOURS):
        clip = folder / f"{index}.mp4"
        with av.open(str(clip), "w") as container:
            stream = container.add_stream("libx264", rate=FPS)
            stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
            for _ in range(FPS):
                frame = av.VideoFrame.from_ndarray(np.full((64, 96, 3), colour, np.uint8), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        parts.append(Part(clip, f"scene {index}: {{a}} long caption that goes over more than a single line of text"))
    output = folder / "film.mp4"
    join(parts, "title", output)
    return output


def test_stills_are_spread_over_the_film_with_their_captions(film: Path) -> None:
    shown = stills(film, 4)
    assert [still.at_s for still in shown] == pytest.approx([0.0, 0.5, 1.0, 1.5])
    assert [still.caption.split(":")[0] for still in shown] == ["scene 0", "scene 0", "scene 1", "scene 1"]
    means = [np.asarray(still.picture).mean(axis=(0, 1)) for still in shown]
    assert means[0] == pytest.approx(COLOURS[0], abs=12)
    assert means[3] == pytest.approx(COLOURS[1], abs=12)


def test_more_stills_than_frames_are_all_frames(film: Path) -> None:
    assert len(stills(film, 100)) == 2 * FPS


def test_the_sheet_has_a_cell_for_every_still(film: Path) -> None:
    sheet = contact_sheet(stills(film, 6), columns=4, width_px=96)
    cells = np.asarray(sheet)
    assert sheet.width == 4 * (96 + 8) + 8
    assert sheet.height == 2 * (64 + 34 + 8) + 8
    assert cells[8 + 32, 8 + 48] == pytest.approx(COLOURS[0], abs=12)
    second_row = 8 + 64 + 34 + 8
    assert cells[second_row + 32, 8 + 48] == pytest.approx(COLOURS[1], abs=12)


def test_the_command_writes_a_picture_and_refuses_what_is_no_film(film: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    output = tmp_path / "sheet.png"
    assert runner.invoke(app, ["sheet", str(film), "-o", str(output)]).exit_code == 0
    assert output.read_bytes()[:4] == b"\x89PNG"
    not_film = tmp_path / "no.mp4"
    not_film.write_bytes(b"nothing")
    assert runner.invoke(app, ["sheet", str(not_film), "-o", str(output)]).exit_code == 2
    assert runner.invoke(app, ["sheet", str(film), "-o", str(tmp_path / "sheet.gif")]).exit_code == 2
    with pytest.raises(NoFilmError):
        stills(not_film, 1)
