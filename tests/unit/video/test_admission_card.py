"""Clips are admitted by what a simulated card has free, neighbours that could sleep included; sizes are SVD-XT's."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from halfreel.video.v1 import video_pb2
from halfreel_runtime.memory import MemoryMonitor
from halfreel_runtime.memory_limit import MemoryLimit
from halfreel_runtime.plan import PlanRefused, Profile, Verdict
from halfreel_runtime.sleeper import Sleeper
from halfreel_runtime.testing.allocator import SimulatedAllocator
from halfreel_runtime.testing.card import SimulatedCard
from halfreel_runtime.testing.source import SimulatedSource, simulated_device
from halfreel_runtime.turn import DeviceTurn
from halfreel_video.admission import Admission
from halfreel_video.architecture import Architecture
from halfreel_video.coefficients import shipped_architecture
from halfreel_video.limits import Limits
from halfreel_video.model import ClipDefaults
from halfreel_video.settings import VideoSettings

GIB = 2**30
CLIP = video_pb2.GenerateRequest(prompt="a red circle")


class Server:
    """The video server's admission on a card, asleep: nothing of it is there but its context."""

    def __init__(self, model: Any, card: SimulatedCard, folder: Path, budget_bytes: int) -> None:
        self.card = card
        self.allocator = SimulatedAllocator(card, context_bytes=GIB // 2)
        device = simulated_device()
        self.memory = MemoryMonitor(device, budget_bytes=budget_bytes, source=SimulatedSource(self.allocator))
        self.turn = DeviceTurn(folder, device.gpu_uuid, service="video", capacity_bytes=card.capacity_bytes)
        self.sleeper = Sleeper(self.memory, turn=self.turn)
        defaults = ClipDefaults(1024, 576, 25, 25, 7, 127, 3.0)
        real = dataclasses.replace(
            model,
            device=device,
            architecture=Architecture.from_json(shipped_architecture()),
            clip_frame_count=25,
            dtype=torch.float16,
            defaults=defaults,
        )
        limit = MemoryLimit(device, card.capacity_bytes, budget_bytes, 0)
        limits = Limits.of(VideoSettings(), defaults)
        self.admission = Admission(real, limits, self.memory, limit, Profile.AUTO, self.sleeper)

    def verdict(self, request: video_pb2.GenerateRequest = CLIP) -> Verdict:
        choice, _ = self.admission.admit(request)
        return choice.plan.verdict


@pytest.fixture
def on_card(model: Any, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    with contextlib.ExitStack() as stack:

        def make(capacity: float, *, others: float = 0, budget: float = 0) -> Server:
            card = SimulatedCard(int(capacity * GIB), others_bytes=int(others * GIB))
            server = Server(model, card, tmp_path / "turns", int(budget * GIB))
            stack.callback(server.turn.close)
            return server

        yield make


@pytest.fixture
def neighbour(tmp_path: Path) -> Iterator[Callable[[Server, float], SimulatedAllocator]]:
    with contextlib.ExitStack() as stack:

        def make(server: Server, held: float) -> SimulatedAllocator:
            """A language model, awake on the same card, that takes turns."""
            allocator = SimulatedAllocator(server.card, context_bytes=GIB // 2)
            allocator.allocate(int(held * GIB))
            turn = DeviceTurn(
                tmp_path / "turns", "GPU-simulated", service="llm", capacity_bytes=server.card.capacity_bytes
            )
            turn.tell(needs_bytes=int((held + 1) * GIB), held_bytes=allocator.live.reserved, context_bytes=GIB // 2)
            stack.callback(turn.close)
            return allocator

        yield make


def test_on_a_card_of_80_gib_it_fits_as_it_is(on_card: Callable[..., Server]) -> None:
    server = on_card(80)
    choice, cheaper = server.admission.admit(CLIP)
    assert (choice.plan.verdict, cheaper) == (Verdict.FITS, False)
    assert not choice.levers.stream_weights
    assert choice.plan.needed_bytes <= 80 * GIB


def test_what_others_hold_makes_it_choose_levers_and_then_refuse(on_card: Callable[..., Server]) -> None:
    server = on_card(24)
    roomy, _ = server.admission.admit(CLIP)
    server.card.others_bytes = 16 * GIB
    tight, cheaper = server.admission.admit(CLIP)
    assert not cheaper
    assert tight.plan.needed_bytes <= 8 * GIB < roomy.plan.needed_bytes
    free = int(4.2 * GIB)
    server.card.others_bytes = 24 * GIB - free
    large = {"prompt": "a red circle", "width_px": 1536, "height_px": 864}
    with pytest.raises(PlanRefused) as caught:
        server.admission.admit(video_pb2.GenerateRequest(**large))
    metadata = caught.value.metadata
    assert int(metadata["free_bytes"]) == free
    assert int(metadata["needed_bytes"]) > free
    suggested = video_pb2.GenerateRequest(
        prompt="a red circle",
        width_px=int(metadata["suggested_width_px"]),
        height_px=int(metadata["suggested_height_px"]),
    )
    if "suggested_frame_count" in metadata:
        suggested.frame_count = int(metadata["suggested_frame_count"])
    assert server.verdict(suggested) is Verdict.FITS  # it can be applied as it is
    allowed = video_pb2.GenerateRequest(**large, allow_cheaper=True)
    choice, cheaper = server.admission.admit(allowed)
    assert cheaper
    assert choice.plan.needed_bytes <= free


def test_a_neighbour_that_can_sleep_is_room_and_one_that_can_not_is_none(
    on_card: Callable[..., Server], neighbour: Callable[[Server, float], SimulatedAllocator]
) -> None:
    server = on_card(16)
    neighbour(server, 12)
    choice, cheaper = server.admission.admit(CLIP)
    assert (choice.plan.verdict, cheaper) == (Verdict.FITS_ALONE, False)
    assert server.turn.crowded  # so that the next turn is taken alone
    stranger = on_card(16, others=12.5)
    with pytest.raises(PlanRefused):
        stranger.admission.admit(video_pb2.GenerateRequest(prompt="a red circle", profile="MEMORY_PROFILE_BALANCED"))


def test_a_budget_is_kept_though_the_card_has_room(on_card: Callable[..., Server]) -> None:
    server = on_card(80, budget=6)
    choice, _ = server.admission.admit(CLIP)
    assert choice.plan.needed_bytes <= 6 * GIB
    assert server.memory.report().devices[0].headroom_bytes == int(5.5 * GIB)


def test_a_driver_that_does_not_answer_leaves_the_budget_and_the_card(on_card: Callable[..., Server]) -> None:
    server = on_card(24, others=20)
    source = server.memory._source
    assert isinstance(source, SimulatedSource)
    source.nvml = False
    assert server.verdict() is Verdict.FITS  # of others nothing is known; if it does not fit, the ladder helps


def test_fused_blocks_are_planned_where_they_are_ready(
    on_card: Callable[..., Server], model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = on_card(80)
    plain, _ = server.admission.admit(CLIP)
    assert not plain.levers.compiled
    monkeypatch.setattr(model.layout.fused, "ready", True)
    fast, _ = server.admission.admit(CLIP)
    assert fast.levers == dataclasses.replace(plain.levers, compiled=True)
    assert fast.plan.reserved_bytes < plain.plan.reserved_bytes
    assert server.admission.usual_levers().compiled
    # What the client fixed is done so.
    fixed = video_pb2.GenerateRequest(prompt="a red circle", levers=plain.levers.message())
    assert not server.admission.admit(fixed)[0].levers.compiled
    # Where they don't fit as they are, what costs no time is given up before their speed is.
    server.card.others_bytes = 67 * GIB
    tight = server.admission.admit(CLIP)[0]
    assert tight.plan.fits
    assert tight.levers.compiled
    assert tight.levers.decode_chunk_frame_count < fast.levers.decode_chunk_frame_count
    server.card.others_bytes = 72 * GIB
    assert server.admission.admit(CLIP)[0].levers.offload_idle_parts
