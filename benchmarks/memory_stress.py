"""Does any of a thousand mixed requests end a server, run out of memory for good, or leave a byte behind?

    python benchmarks/memory_stress.py [--requests 1000] [--budgets 8,12,16,24] [--write]

SIMULATED: no GPU. Both servers of a card, each with its own engine, sleeper, turn and monitor, on a card that is
arithmetic: an allocator by the rules of torch's, held against recorded runs of a real one. The language model takes
memory and computes nothing. Clips are planned and admitted as SVD-XT's at the size that was asked for, and charged to
the card as the shipped lines say of that size, while a tiny model of the same classes renders them at 32x32: moving,
streaming, decoding, the ladder and the turns are the product's own code. A piece of work takes 85 to 100 % of what its
plan says, and one in fifty up to 15 % more. Strangers come and go on the card, in the middle of requests too.
"""

# ruff: noqa: E402 - the hub client is told before diffusers is imported

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent / "tests")]

import torch
from llm_bench import result_of, write_result

from halfreel.gpu.v1 import gpu_pb2
from halfreel.video.v1 import video_pb2
from halfreel_runtime.cancel import CancelToken
from halfreel_runtime.device import find_device
from halfreel_runtime.engine import Engine, EngineState
from halfreel_runtime.errors import OutOfMemory, WakeFailed
from halfreel_runtime.memory import MemoryMonitor
from halfreel_runtime.memory_limit import MemoryLimit
from halfreel_runtime.plan import PlanRefused
from halfreel_runtime.settings import ModelServerSettings
from halfreel_runtime.sleeper import Sleeper
from halfreel_runtime.testing.allocator import SimulatedAllocator
from halfreel_runtime.testing.card import SimulatedCard
from halfreel_runtime.testing.model import SimulatedModel
from halfreel_runtime.testing.source import SimulatedSource, simulated_device
from halfreel_video.events import ClipDone
from halfreel_video.model import VideoModel, load_model
from halfreel_video.quiet import quiet_libraries
from halfreel_video.settings import VideoSettings
from halfreel_video.testing.charged_model import ChargedVideo

MIB, GIB = 2**20, 2**30
# Of a card of so many GiB: what is usable of it, the language model's weights (FP16, or 8 bits where that does not
# fit), the most that a reply takes beside them, and the most that strangers hold.
BUDGETS = {8: (7.6, 6.0, 0.1, 0.0), 12: (11.5, 6.0, 1.0, 1.0), 16: (15.5, 11.7, 1.0, 1.0), 24: (23.4, 11.7, 2.0, 4.0)}
# Measured on an H100: what the driver keeps for each server.
LLM_CONTEXT_BYTES, VIDEO_CONTEXT_BYTES = 748 * MIB, 694 * MIB
AT_ONCE = 6  # requests under way
FRAME_COUNTS = (2, 2, 3, 3, 5, 5, 8, 26)  # the last in two parts
SEED = 20261124
WAKE_TRIES = 20


class Server(ABC):
    """What both servers have: an allocator, a monitor, a sleeper that takes turns, and an engine."""

    def __init__(self, service: str, card: SimulatedCard, context_bytes: int, turns: Path) -> None:
        """Takes the context's memory of the card."""
        self.allocator = SimulatedAllocator(card, context_bytes=context_bytes)
        device = simulated_device()
        self.memory = MemoryMonitor(device, source=SimulatedSource(self.allocator))
        settings = ModelServerSettings(turns_dir=turns, turn_s=0.2)
        self.sleeper = Sleeper.of(settings, self.memory, service=service, capacity_bytes=card.capacity_bytes)
        self.limit = MemoryLimit(device, card.capacity_bytes, 0, 0)
        self.engine: Engine[Any] = Engine(name=service, max_waiting_count=10 * AT_ONCE, gate=self.sleeper)
        self.leaked_bytes = 0

    @abstractmethod
    def load(self) -> None:
        """Brings the model; in the engine's thread."""

    @abstractmethod
    def held_bytes(self) -> int:
        """What the weights take now."""

    def look(self) -> None:
        """After a request, in the engine's thread: what is live beside the weights was left behind."""
        self.leaked_bytes = max(self.leaked_bytes, abs(self.allocator.live.allocated - self.held_bytes()))

    async def call(self, name: str) -> None:
        """Sleep, Wake or ClearMemory, as the memory service does them."""

        def steps(token: CancelToken) -> Iterator[Any]:
            if name == "sleep":
                self.sleeper.sleep()
            elif name == "clear":
                self.memory.clear()
            self.look()
            yield from ()

        async for _ in self.engine.run(steps, needs_model=name == "wake"):
            pass


class Replies(Server):
    """The language model."""

    def __init__(self, card: SimulatedCard, turns: Path, weights_gib: float, most_gib: float) -> None:
        """Takes the weights and the largest reply, in GiB."""
        super().__init__("llm", card, LLM_CONTEXT_BYTES, turns)
        self._weight_bytes, self.most_gib = int(weights_gib * GIB), most_gib
        self.sleeper.guess(self._weight_bytes + int(most_gib * GIB) + LLM_CONTEXT_BYTES)
        self._model: SimulatedModel | None = None

    def load(self) -> None:
        """See `Server`."""
        with self.memory.phase("load"):
            self._model = SimulatedModel(self.allocator, self._weight_bytes)
        self.sleeper.model_loaded(self._model)
        self._awake_bytes = self.allocator.live.allocated

    def held_bytes(self) -> int:
        """See `Server`."""
        return self._awake_bytes if self._model is not None and self._model.awake else 0

    async def request(self, size_bytes: int) -> None:
        """One reply that takes so much, once there is room for it by the plan."""
        room = self.limit.room(
            self.memory.report().devices[0].other_processes_bytes,
            sum(each.held_bytes for each in self.sleeper.neighbours()),
        )
        needed = self._weight_bytes + size_bytes + LLM_CONTEXT_BYTES + 40 * MIB  # and what lies between tensors
        if needed > room.alone_bytes:
            raise PlanRefused("it does not fit")
        self.sleeper.expect(needed, alone=needed > room.available_bytes)

        def steps(token: CancelToken) -> Iterator[str]:
            assert self._model is not None
            try:
                with self.memory.request("reply"), self.memory.phase("decode"), self._model.activations(size_bytes):
                    yield "text"
            finally:
                self.look()

        async for _ in self.engine.run(steps):
            pass


class Clips(Server):
    """The video model."""

    def __init__(self, card: SimulatedCard, turns: Path, small: VideoModel, dice: random.Random) -> None:
        """Takes a tiny model that is its own."""
        super().__init__("video", card, VIDEO_CONTEXT_BYTES, turns)
        self._small, self._dice = small, dice
        self.rungs: Counter[str] = Counter()
        self.cheaper_count = 0
        self.step_count = 0

    def load(self) -> None:
        """See `Server`; laid out for the usual clip, as by the server's warm-up."""
        self._video = ChargedVideo.of(self._small, self.allocator, self.memory, self.sleeper)
        self._video.layout.arrange(self._video.admission.usual_levers())
        self._video.layout.taken_ratio = self._taken
        self.sleeper.model_loaded(self._video.sleeping)

    def held_bytes(self) -> int:
        """See `Server`."""
        return self._video.layout.held_bytes()

    def _taken(self, phase: str) -> float:
        return self._dice.uniform(1.0, 1.15) if self._dice.random() < 0.02 else self._dice.uniform(0.85, 1.0)

    async def request(self, wanted: video_pb2.GenerateRequest) -> None:
        """One clip, or a cheaper one where it allows that."""
        choice = await asyncio.to_thread(self._video.admit, wanted)
        self.cheaper_count += (choice.wish.width_px, choice.wish.height_px) != (wanted.width_px, wanted.height_px)
        steps = self._video.steps(wanted, choice)

        def looked_after(token: CancelToken) -> Iterator[Any]:
            try:
                yield from steps(token)
            finally:
                self.look()

        async for event in self.engine.run(looked_after):
            if isinstance(event, ClipDone):
                self.rungs.update(event.rungs)
                self.step_count += wanted.step_count


def drawn_clip(dice: random.Random) -> video_pb2.GenerateRequest:
    """Any clip: sizes, lengths, profiles, levers."""
    wanted = video_pb2.GenerateRequest(
        prompt="a red circle",
        width_px=64 * dice.randint(4, 20),
        height_px=64 * dice.randint(4, 12),
        frame_count=dice.choice(FRAME_COUNTS),
        step_count=dice.randint(1, 2),
        guidance_scale=dice.choice((1.0, 3.0, 3.0)),
        seed=dice.randrange(1000),
        allow_cheaper=dice.random() < 0.7,
        profile=dice.choice(gpu_pb2.MemoryProfile.values()),
    )
    if dice.random() < 0.2:
        wanted.decode_chunk_frame_count = dice.choice((1, 2, 4, 8))
    if dice.random() < 0.2:
        wanted.levers.offload_idle_parts = dice.random() < 0.7
        wanted.levers.stream_weights = dice.random() < 0.5
        wanted.levers.split_guidance = dice.random() < 0.5
        wanted.levers.feed_forward_chunk_count = dice.choice((1, 2, 8))
    return wanted


async def stress(small: VideoModel, budget_gib: int, request_count: int) -> dict[str, Any]:
    """Runs so many requests on a card of a size; returns what became of them."""
    usable, weights, most, strangers = BUDGETS[budget_gib]
    dice, outcomes = random.Random(SEED + budget_gib), Counter[str]()
    card, began_at = SimulatedCard(int(usable * GIB)), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        replies = Replies(card, Path(folder), weights, most)
        clips = Clips(card, Path(folder), small, random.Random(SEED))
        servers: tuple[Server, ...] = (replies, clips)
        for each in servers:
            each.engine.start(each.load)
        while any(each.engine.state is EngineState.LOADING for each in servers):
            await asyncio.sleep(0.01)
        places = asyncio.Semaphore(AT_ONCE)

        async def one(number: int) -> None:
            async with places:
                if dice.random() < 0.3:  # they take what is free, no more
                    others = int(dice.uniform(0, strangers) * GIB)
                    card.others_bytes = min(others, card.others_bytes + card.free_bytes)
                kind, name = dice.random(), dice.choice(("sleep", "wake", "clear"))
                server = dice.choice(servers)
                size, wanted = int(dice.uniform(0.01, most) * GIB), drawn_clip(dice)
                for attempt in range(WAKE_TRIES):
                    try:
                        if kind < 0.45:
                            await clips.request(wanted)
                        elif kind < 0.9:
                            await replies.request(size)
                        else:
                            await server.call(name)
                        outcomes["done"] += 1
                    except WakeFailed:  # UNAVAILABLE: the client comes again
                        outcomes["wake_tried_again"] += 1
                        await asyncio.sleep(0.05)
                        if attempt < WAKE_TRIES - 1:
                            continue
                        outcomes["wake_failed"] += 1
                    except PlanRefused:
                        outcomes["refused"] += 1
                    except OutOfMemory:
                        outcomes["oom_unrecovered"] += 1
                    except Exception as error:
                        outcomes[f"error: {type(error).__name__}: {error}"] += 1
                    break

        await asyncio.gather(*(one(number) for number in range(request_count)))
        deaths = sum(each.engine.state is EngineState.DEAD for each in servers)
        await clips.call("sleep")
        await replies.call("sleep")
        left = card.used_bytes - card.others_bytes - LLM_CONTEXT_BYTES - VIDEO_CONTEXT_BYTES
        for each in servers:
            each.engine.close()
            if each.sleeper._turn is not None:
                each.sleeper._turn.close()
    return {
        "usable_gib": usable,
        "requests": request_count,
        "oom_unrecovered": outcomes.pop("oom_unrecovered", 0),
        "deaths": deaths,
        "leaked_bytes": max(each.leaked_bytes for each in servers),
        "left_asleep_bytes": left,
        **outcomes,
        "cheaper": clips.cheaper_count,
        "rungs": dict(clips.rungs),
        "denoising_steps": clips.step_count,
        "wakes": sum(each.sleeper.woken_count for each in servers),
        "seconds": round(time.monotonic() - began_at, 1),
    }


def small_model() -> VideoModel:
    """Tiny random models of the real classes, loaded for one card alone."""
    import tiny_video

    with tempfile.TemporaryDirectory() as folder:
        svd, keyframe = tiny_video.save_models(Path(folder))
        settings = VideoSettings(model=str(svd), keyframe_model=str(keyframe), device="cpu")
        return load_model(settings, find_device("cpu"))


def one_budget(budget_gib: int, request_count: int) -> dict[str, Any]:
    """A budget by itself, in a process of its own."""
    quiet_libraries()
    torch.set_num_threads(1)
    found = asyncio.run(stress(small_model(), budget_gib, request_count))
    print(json.dumps({budget_gib: found}), flush=True)
    return found


def main() -> None:
    """Runs all budgets at once, and prints the result last."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--requests", type=int, default=1000, help="at each budget")
    arguments.add_argument("--budgets", default="8,12,16,24", help="GiB of the cards")
    arguments.add_argument("--write", action="store_true", help="into benchmarks/results/")
    read = arguments.parse_args()
    budgets = [int(each) for each in read.budgets.split(",")]
    with ProcessPoolExecutor(len(budgets), get_context("spawn")) as pool:
        runs = {str(budget): pool.submit(one_budget, budget, read.requests) for budget in budgets}
        found = {budget: run.result() for budget, run in runs.items()}
    figures = {
        "simulated": True,
        "requests": min(each["requests"] for each in found.values()),
        "real_size_requests": 0,
        "oom_unrecovered": sum(each["oom_unrecovered"] for each in found.values()),
        "deaths": sum(each["deaths"] for each in found.values()),
        "leaked_bytes": max(each["leaked_bytes"] for each in found.values()),
        "budgets_gib": found,
    }
    line = result_of(figures, where="simulated", libraries=("torch", "diffusers"))
    if read.write:
        write_result(line, "memory_stress", "simulated")
    print(line)


if __name__ == "__main__":
    main()
