"""Two servers on one simulated card, each with its engine, sleeper and allocator: who is awake when, and room."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from halfreel.gpu.v1 import gpu_pb2
from halfreel_runtime.cancel import CancelToken
from halfreel_runtime.engine import Engine, EngineState
from halfreel_runtime.errors import WakeFailed
from halfreel_runtime.memory import MemoryMonitor
from halfreel_runtime.settings import ModelServerSettings
from halfreel_runtime.sleeper import Sleeper
from halfreel_runtime.testing.allocator import SimulatedAllocator
from halfreel_runtime.testing.card import SimulatedCard
from halfreel_runtime.testing.model import SimulatedModel
from halfreel_runtime.testing.source import SimulatedSource, simulated_device

GIB = 2**30
CONTEXT = GIB // 2


class Member:
    """A server: weights of so many GiB, requests of at most so many more."""

    def __init__(
        self, service: str, card: SimulatedCard, weights: float, most: float, *, guess: bool = False, **settings: object
    ) -> None:
        self.weights, self.most = int(weights * GIB), int(most * GIB)
        self.allocator = SimulatedAllocator(card, context_bytes=CONTEXT)
        device = simulated_device()
        self.memory = MemoryMonitor(device, source=SimulatedSource(self.allocator))
        self.sleeper = Sleeper.of(
            ModelServerSettings(**settings),  # type: ignore[arg-type]
            self.memory,
            service=service,
            capacity_bytes=card.capacity_bytes,
        )
        self.sleeper.guess(self.weights + self.most + CONTEXT if guess else 0)
        self.engine: Engine[str] = Engine(name=service, max_waiting_count=200, gate=self.sleeper)

    def load(self) -> None:
        with self.memory.phase("load"):
            self.model = SimulatedModel(self.allocator, self.weights)
        with self.model.activations(self.most):  # warm-up: what the largest request takes
            pass
        self.memory.clear()
        self.sleeper.model_loaded(self.model)

    async def request(self, size: float) -> None:
        def steps(token: CancelToken) -> Iterator[str]:
            phase = self.memory.phase("denoise")
            with self.memory.request("r"), phase, self.model.activations(int(size * GIB)):
                time.sleep(0.003)
                yield "done"

        async for _ in self.engine.run(steps):
            pass


@contextlib.asynccontextmanager
async def members_of(
    folder: Path, capacity: float, *, guess: bool = False, **settings: object
) -> AsyncIterator[tuple[Member, Member]]:
    card = SimulatedCard(int(capacity * GIB))
    shared = {"turns_dir": folder / "turns", "turn_s": 0.1} | settings
    llm = Member("llm", card, 11.7, 1.0, guess=guess, **shared)
    members = llm, Member("video", card, 4.2, 8.0, guess=guess, **shared)
    for each in members:
        each.engine.start(each.load)
    async with asyncio.timeout(60):
        while not all(each.engine.state is EngineState.SERVING for each in members):
            assert not any(each.engine.state is EngineState.DEAD for each in members)
            await asyncio.sleep(0.005)
    yield members
    for each in members:
        assert each.engine.close()
        if each.sleeper._turn is not None:
            each.sleeper._turn.close()


async def hundred_requests(members: tuple[Member, Member]) -> None:
    dice = random.Random(1)
    jobs = [dice.choice(members) for _ in range(100)]
    await asyncio.gather(*(each.request(dice.uniform(0.1, each.most / GIB)) for each in jobs))


async def test_on_a_card_of_16_gib_they_take_turns_and_no_request_runs_out_of_memory(tmp_path: Path) -> None:
    async with members_of(tmp_path, 15.5) as members:
        await hundred_requests(members)
        llm, video = members
        assert llm.model.sleep_count > 1
        assert video.model.sleep_count > 1
        assert llm.model.awake != video.model.awake
        peaks = [each.memory.report().devices[0].process_peak.reserved_bytes for each in members]
        assert max(peaks) + 2 * CONTEXT <= 15.5 * GIB < sum(peaks)
        asleep = llm if video.model.awake else video
        assert asleep.memory.live().reserved == 0


async def test_on_a_card_that_holds_both_nobody_sleeps_once_both_are_known(tmp_path: Path) -> None:
    async with members_of(tmp_path, 40) as members:
        await hundred_requests(members)
        counts = [each.model.sleep_count for each in members]
        assert all(each.model.awake for each in members)
        await hundred_requests(members)
        assert [each.model.sleep_count for each in members] == counts
        assert sum(counts) <= 3  # while they got to know each other


async def test_those_whose_files_say_that_they_fit_never_sleep(tmp_path: Path) -> None:
    async with members_of(tmp_path, 40, guess=True) as members:
        await hundred_requests(members)
        assert [each.model.sleep_count for each in members] == [0, 0]


async def test_those_whose_files_say_that_they_do_not_fit_load_one_after_the_other(tmp_path: Path) -> None:
    async with members_of(tmp_path, 15.5, guess=True) as members:
        await hundred_requests(members)
        assert all(each.model.sleep_count > 0 for each in members)


async def test_a_larger_request_than_ever_before_has_the_neighbour_sleep(tmp_path: Path) -> None:
    async with members_of(tmp_path, 27) as members:
        llm, video = members
        await hundred_requests(members)
        assert llm.model.awake
        assert video.model.awake
        neighbours = video.sleeper.neighbours()
        assert [each.service for each in neighbours] == ["llm"]
        assert 11.7 * GIB <= neighbours[0].held_bytes <= 12.8 * GIB  # its weights, and what is cached
        video.sleeper.expect(int((4.2 + 12) * GIB) + CONTEXT)  # what its plan says
        await video.request(12)
        assert not llm.model.awake


async def test_with_turns_off_the_second_does_not_fit_and_says_so(tmp_path: Path) -> None:
    card = SimulatedCard(int(15.5 * GIB))
    one = Member("llm", card, 11.7, 1.0, turns="off")
    two = Member("video", card, 4.2, 2.0, turns="off")
    two.engine.start(two.load)
    async with asyncio.timeout(30):
        while two.engine.state is EngineState.LOADING:
            await asyncio.sleep(0.005)
    one.engine.start(one.load)
    async with asyncio.timeout(30):
        while one.engine.state is EngineState.LOADING:
            await asyncio.sleep(0.005)
    assert one.engine.state is EngineState.DEAD
    assert one.sleeper.neighbours() == []
    assert two.engine.close()


async def test_strangers_take_room_and_a_plan_that_fits_alone_has_the_neighbour_sleep(tmp_path: Path) -> None:
    async with members_of(tmp_path, 40) as members:
        llm, video = members
        await hundred_requests(members)
        assert llm.model.awake
        assert video.model.awake
        llm.allocator.card.others_bytes = 18 * GIB
        video.memory.clear()
        llm.memory.clear()
        # 40 GiB less 18, 11.7 and 4.2 of weights and the contexts: 6 GiB would not fit beside the neighbour.
        video.sleeper.expect(int(10.2 * GIB) + CONTEXT, alone=True)
        await video.request(6)
        assert not llm.model.awake
        await hundred_requests(members)  # now it is known what strangers hold: from here on by turns
        assert llm.model.awake != video.model.awake


async def test_a_wake_waits_for_what_a_dead_server_still_holds(tmp_path: Path) -> None:
    async with members_of(tmp_path, 15.5) as members:
        llm, video = members
        await video.request(1)
        assert not llm.model.awake
        card = llm.allocator.card
        card.others_bytes = 6 * GIB  # of a process that has just been killed

        async def cleared() -> None:
            await asyncio.sleep(0.3)
            card.others_bytes = 0

        await asyncio.gather(llm.request(0.5), cleared())
        assert llm.model.awake


async def test_a_wake_without_room_tells_how_much_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("halfreel_runtime.sleeper._ROOM_WITHIN_S", 0.05)
    async with members_of(tmp_path, 15.5) as members:
        llm, video = members
        await video.request(1)
        llm.allocator.card.others_bytes = 6 * GIB
        with pytest.raises(WakeFailed) as caught:
            await llm.request(0.5)
        assert caught.value.metadata == {
            "needed_bytes": str(llm.model.weight_bytes),
            "free_bytes": str(llm.allocator.card.free_bytes),
        }
        assert llm.memory.model_state == gpu_pb2.MODEL_STATE_WAKE_FAILED
        assert llm.memory.live().reserved == 0
        await video.request(1)  # the turn was given back
        llm.allocator.card.others_bytes = 0
        await llm.request(0.5)
        assert llm.engine.state is EngineState.SERVING
