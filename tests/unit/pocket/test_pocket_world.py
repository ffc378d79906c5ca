"""The pocket world: its truth, its cues, and the detector that the models are measured by."""

import pytest
import torch

from halfreel_pocket import detector, world
from halfreel_pocket.words import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SIZES, is_held_out


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_world_is_as_large_as_promised():
    assert len(COLOURS) >= 8
    assert len(SHAPES) >= 6
    assert len(SIZES) == len(world.RADII_PX) == 3
    assert len(BACKGROUNDS) >= 6
    assert list(MOTIONS) == ["left", "right", "up", "down", "toward", "still"]
    assert len(world.OUTLINES) == len(SHAPES)
    assert len(world.palette()) == len(COLOURS)
    assert len(world.backgrounds()) == len(BACKGROUNDS)


def test_a_seed_decides_everything():
    first, second = (world.film(world.sample(3, generator(7)), 4)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, world.film(world.sample(3, generator(8)), 4)[0])


@pytest.mark.parametrize("held_out", [False, True])
def test_looks_are_held_out_or_not_as_asked(held_out):
    scenes = world.sample(500, generator(1), held_out=held_out)
    looks = zip(scenes.colour.tolist(), scenes.shape.tolist(), scenes.background.tolist(), strict=True)
    assert {is_held_out(*look) for look in looks} == {held_out}


def test_held_out_looks_are_a_tenth_and_leave_no_name_out():
    looks = [(c, s, b) for c in range(8) for s in range(6) for b in range(6)]
    kept = [look for look in looks if is_held_out(*look)]
    assert 0.08 < len(kept) / len(looks) < 0.12
    for place, count in enumerate((8, 6, 6)):
        assert {look[place] for look in kept} == set(range(count))


def test_films_show_what_the_truth_says():
    scenes = world.sample(24, generator(2))
    frames, shapes = world.film(scenes)
    assert frames.shape == (24, 16, 3, 96, 128)
    assert shapes.shape == (24, 16, 1, 96, 128)
    assert float(frames.abs().max()) <= 1
    found = detector.find(frames[:, ::5].flatten(0, 1))
    x, y, radius = (way[:, ::5].flatten() for way in world.track(scenes))
    assert torch.equal(found.colour, scenes.colour.repeat_interleave(4))
    assert torch.equal(found.shape, scenes.shape.repeat_interleave(4))
    assert float(torch.hypot(found.x_px - x, found.y_px - y).max()) < 1.5
    assert float((found.radius_px - radius).abs().max()) < 1.5
    assert float(found.likeness.min()) > 0.8


def test_the_detector_tells_every_motion():
    scenes = world.sample(24, generator(3))
    ends = world.film(scenes)[0][:, [0, 1, 14, 15]]
    assert torch.equal(detector.motion_of(detector.find(ends.flatten(0, 1)), 4), scenes.motion)


def test_the_detector_finds_nothing_where_nothing_is():
    found = detector.find(torch.cat([world.backgrounds(), torch.rand(2, 3, 96, 128) * 0.2]))
    assert (found.colour == -1).all()
    assert (found.shape == -1).all()


def test_a_larger_bucket_goes_farther_and_a_shape_stays_in_the_picture():
    scenes = world.sample(300, generator(4), midway_ratio=0.5)
    x, y, radius = world.track(scenes, 40)
    assert ((x >= radius - 1) & (x <= world.WIDTH_PX - radius + 1))[scenes.motion < 4].all()
    assert ((y >= radius - 1) & (y <= world.HEIGHT_PX - radius + 1))[scenes.motion < 4].all()
    right = scenes.motion == list(MOTIONS).index("right")
    near, far = (
        world.track(world.Scenes(**{**vars(scenes), "bucket": torch.full_like(scenes.bucket, bucket)}))[0][right]
        for bucket in (20, 200)
    )
    assert (far[:, -1] >= near[:, -1]).all()
    assert float(far[:, -1].mean()) > float(near[:, -1].mean()) + 5


def test_a_first_frame_shows_where_the_shape_will_go():
    scene = world.sample(1, generator(5))
    middle = {"x_px": torch.tensor([64.0]), "y_px": torch.tensor([48.0]), "radius_px": torch.tensor([15.0])}
    pictures = [
        world.draw(world.Scenes(**{**vars(scene), **middle, "motion": torch.tensor([motion])}))[0]
        for motion in range(len(MOTIONS))
    ]
    for number, first in enumerate(pictures):
        for second in pictures[:number]:
            assert float((first - second).abs().amax(1).gt(0.2).sum()) > 30
