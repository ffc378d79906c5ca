"""Does any of a mix of requests at real size end a server, run out of memory for good, or leave a byte behind?

    python benchmarks/memory_stress_real.py [--requests 14] [--budgets 8,12,16,24] [--write]

Both real servers on one GPU, which take turns: ChatGLM3-6B (8-bit weights on 8 and 12 GiB, FP16 on 16 and 24), and
SVD-XT with a keyframe model of sd-turbo's shape, random weights. A process of its own holds the rest of the card, so
that 7.6, 11.5, 15.5 or 23.4 GiB of it are free. Two or three requests at once: clips of any size, profile and levers,
replies, Sleep, Wake and ClearMemory, and clips that fit no card and must be refused. After each such round, allocated
bytes are held against those of the same state before, and both are sent to sleep, where they must hold what they held
after the warm-up. 8 and 12 GiB, and 16 and 24, have the same two processes one after the other. --tiny --device cpu
tries the script without a GPU: its figures mean nothing, for allocated bytes are there the process's resident ones.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from film_servers import make_models
from held_card import HeldCard, held_card
from llm_bench import result_of, write_result
from stress_mix import Wanted, mix, reply
from stress_pair import ENDED_WITHIN_S, Card, Pair, Peer

from halfreel.gpu.v1 import gpu_pb2
from halfreel.video.v1 import video_pb2
from halfreel_client.errors import error_from

GIB = 2**30
# Of a card of so many GiB: what driver and desktop leave of it, and the language model's settings.
_INT8 = {"precision": "int8", "slot-count": 1, "context-token-count": 1280}
_FP16 = {"precision": "fp16", "slot-count": 4, "context-token-count": 2048}
BUDGETS = {8: (7.6, _INT8), 12: (11.5, _INT8), 16: (15.5, _FP16), 24: (23.4, _FP16)}
SEED = 20261128
MODELS_WITHIN_S, STARTED_WITHIN_S = 90.0, 75.0
# Of a request; and what a start of both is expected to take.
REQUEST_S, START_S = 30.0, 30.0
WAKE_TRIES = 8
_SHM, _SHM_BYTES = Path("/dev/shm"), 24 * GIB


def ask(peer: Peer, wanted: Wanted, timeout_s: float) -> None:
    """Sends one request and reads its answer to the end."""
    if wanted.kind == "call":
        name = type(wanted.message).__name__.removesuffix("Request")
        getattr(peer.memory, name)(wanted.message, timeout=timeout_s)
        if name == "Wake":
            peer.layout = None if wanted.server == "video" else "awake"
        return
    for event in peer.stub.Generate(wanted.message, timeout=timeout_s):
        if event.WhichOneof("event") == "completed":
            done = event.completed
            video = wanted.server == "video"
            peer.layout = f"{done.levers} {list(done.rungs)} {done.dtype} {done.nan_retry_count}" if video else "awake"


def outcome(peer: Peer, wanted: Wanted, deadline: float) -> Iterator[str]:
    """Has a request answered, again while the model can't be woken, and yields what became of it."""
    for _ in range(WAKE_TRIES):
        try:
            ask(peer, wanted, max(5.0, min(REQUEST_S, deadline + 10 - time.monotonic())))
        except grpc.RpcError as failure:
            error = error_from(failure, wanted.server)
            reason = getattr(error, "reason", "")
            if failure.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and reason == "PLAN_REFUSED":
                yield "too_big_refused" if wanted.refused else f"{wanted.kind}_refused"
                return
            if wanted.kind == "clip":
                peer.layout = None
            if reason == "WAKE_FAILED" and time.monotonic() < deadline:
                yield "wake_tried_again"
                time.sleep(0.5)
                continue
            if reason == "OUT_OF_MEMORY":
                yield "oom_unrecovered"
            elif failure.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                yield "late"
            else:
                yield f"error: {wanted.kind}: {failure.code().name} {reason} {str(error)[:200]}"
            return
        yield "error: a clip that no card has room for was rendered" if wanted.refused else f"{wanted.kind}_done"
        return
    yield "wake_failed"


def left_behind(pair: Pair) -> list[dict[str, Any]]:
    """Holds both servers' bytes against those before: as they are now, and asleep. Nothing may run."""
    found = []
    for name, peer in pair.peers.items():
        state, size = peer.settled()
        if state == gpu_pb2.MODEL_STATE_AWAKE and peer.layout is not None:
            before = peer.awake_bytes.setdefault(peer.layout, size)
            if size != before:
                found.append({"server": name, "awake": peer.layout, "before": before, "bytes": size - before})
        asleep = int(peer.memory.Sleep(gpu_pb2.SleepRequest(), timeout=REQUEST_S).report.devices[0].allocated_bytes)
        if peer.asleep_bytes is None:
            peer.asleep_bytes = asleep
        elif asleep != peer.asleep_bytes:
            found.append(
                {"server": name, "asleep": True, "before": peer.asleep_bytes, "bytes": asleep - peer.asleep_bytes}
            )
    return found


def warm(pair: Pair, *, tiny: bool) -> dict[str, str]:
    """One reply and one clip, and the reply again; what they hold asleep then is what they must come back to."""
    dice, told = random.Random(SEED), {}
    small = video_pb2.GenerateRequest(prompt="warm", frame_count=3, step_count=1, seed=1, allow_cheaper=True)
    small.width_px = small.height_px = 64 if tiny else 256
    for wanted in (reply(dice), Wanted("clip", "video", small), reply(dice)):
        if wanted.server in pair.peers:
            told[wanted.kind] = list(outcome(pair.peers[wanted.server], wanted, time.monotonic() + REQUEST_S))[-1]
    for peer in pair.peers.values():
        peer.layout = None
    left_behind(pair)
    return told


def stress(pair: Pair, budget: int, count: int, deadline: float, *, tiny: bool) -> dict[str, Any]:
    """Sends the mix in rounds of two or three at once, until so many clips and replies are done or the time is up."""
    dice, outcomes = random.Random(SEED + budget), Counter[str]()
    waiting: list[Wanted] = []
    leaks: list[dict[str, Any]] = []
    sent, compared, began_at, stopped = 0, 0, time.monotonic(), ""
    with ThreadPoolExecutor(3) as threads:
        while outcomes["clip_done"] + outcomes["reply_done"] < count or waiting:
            if time.monotonic() > deadline:
                stopped = "its time was up"
                break
            waiting = waiting or [each for each in mix(dice, count, tiny=tiny) if each.server in pair.peers]
            size = dice.randint(2, 3)
            together, waiting = waiting[:size], waiting[size:]
            sent += len(together)
            jobs = [
                threads.submit(lambda each=each: list(outcome(pair.peers[each.server], each, deadline)))
                for each in together
            ]
            for each, job in zip(together, jobs, strict=True):
                told = job.result()
                outcomes.update(told)
                if told[-1].startswith(("error", "oom", "late", "wake_failed")):
                    print(json.dumps({"budget": budget, "kind": each.kind, "told": told[-1]}), flush=True)
            if pair.dead:
                stopped = f"{pair.dead} ended"
                break
            try:
                new = left_behind(pair)
            except grpc.RpcError as failure:
                time.sleep(1)  # one that has just been killed is not gone at once
                stopped = f"{pair.dead} ended" if pair.dead else f"its memory is not told: {failure.code().name}"
                break
            leaks += new
            compared += 1
            for leak in new:
                print(json.dumps({"budget": budget, "left_behind": leak}), flush=True)
    done = outcomes["clip_done"] + outcomes["reply_done"]
    return {
        "requests": sent,
        "real_size_requests": 0 if tiny else done,
        "done": done,
        "oom_unrecovered": outcomes["oom_unrecovered"],
        "deaths": len(pair.dead),
        "leaked_bytes": max((abs(leak["bytes"]) for leak in leaks), default=0),
        "rounds_compared": compared,
        "left_behind_count": len(leaks),
        "outcomes": dict(outcomes),
        "stopped": stopped or None,
        "seconds": round(time.monotonic() - began_at, 1),
    }


def run(
    read: argparse.Namespace,
    models: Path,
    held: HeldCard | None,
    environment: dict[str, str],
    ends_at: float,
    exit_codes: list[int],
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields each budget's figures; whatever goes wrong in one ends it alone."""
    budgets = [int(each) for each in read.budgets.split(",")]
    card, pair = Card(held), None
    device = "cpu" if held is None else "cuda:0"

    def end(pair: Pair) -> None:
        codes = pair.end()
        exit_codes.extend(codes.values())
        card.forget()
        print(json.dumps({"exit_codes": codes}), flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        try:
            for number, budget in enumerate(budgets):
                usable, llm = BUDGETS[budget]
                llm = {"precision": llm["precision"]} if read.tiny else llm
                found: dict[str, Any] = {"usable_gib": usable, "llm": llm["precision"]}
                try:
                    if pair is not None and (pair.llm != llm or pair.dead or pair.not_started):
                        end(pair)
                        pair = None
                    if time.monotonic() > ends_at - 10:
                        raise TimeoutError("there was no time left")
                    found["free_gib"] = card.leave(int(usable * GIB))
                    if pair is None:
                        folder = Path(scratch) / str(budget)
                        folder.mkdir()
                        began_at = time.monotonic()
                        pair = Pair(models, folder, device, llm, environment)
                        pair.wait(min(STARTED_WITHIN_S, ends_at - time.monotonic()))
                        found["started_s"] = round(time.monotonic() - began_at, 1)
                        found["not_started"] = pair.not_started
                        found["warm"] = warm(pair, tiny=read.tiny)
                        print(json.dumps({"budget": budget, **found}), flush=True)
                    later = budgets[number + 1 :]
                    starts = len({id(BUDGETS[each][1]) for each in later} - {id(BUDGETS[budget][1])})
                    share = (ends_at - ENDED_WITHIN_S - time.monotonic() - START_S * starts) / (1 + len(later))
                    deadline = time.monotonic() + max(10.0, min(read.budget_s, share))
                    found |= stress(pair, budget, read.requests, deadline, tiny=read.tiny)
                    found["oom_unrecovered"] += list(found.get("warm", {}).values()).count("oom_unrecovered")
                except Exception as error:
                    traceback.print_exc()
                    found["problem"] = f"{type(error).__name__}: {error}"[:1500]
                    found.setdefault("deaths", len(pair.dead) if pair is not None else 0)
                if found["deaths"] or "problem" in found:
                    logs = Path(scratch).glob("*/*.log")
                    found["log_ends"] = {path.stem: path.read_text().splitlines()[-6:] for path in logs}
                if pair is not None and "problem" in found:  # nobody knows what state it is in
                    end(pair)
                    pair = None
                yield budget, found
        finally:
            if pair is not None:
                end(pair)


@contextlib.contextmanager
def prepared(read: argparse.Namespace) -> Iterator[tuple[Path, HeldCard | None, dict[str, str]]]:
    """The models written, and the card ready to be held."""
    on_gpu = read.device != "cpu"
    environment: dict[str, str] = {}
    if on_gpu:  # all processes see the one card only
        visible = [each for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each]
        environment["CUDA_VISIBLE_DEVICES"] = visible[read.gpu_index] if visible else str(read.gpu_index)
    roomy = _SHM.is_dir() and shutil.disk_usage(_SHM).free > _SHM_BYTES
    device = "cuda:0" if on_gpu else "cpu"
    with contextlib.ExitStack() as opened:
        models = read.models or Path(opened.enter_context(tempfile.TemporaryDirectory(dir=_SHM if roomy else None)))
        models.mkdir(parents=True, exist_ok=True)
        began_at = time.monotonic()
        make_models(
            models,
            tiny=read.tiny,
            llm_device=device,
            video_device=device,
            environment=environment,
            within_s=MODELS_WITHIN_S,
        )
        print(json.dumps({"models_s": round(time.monotonic() - began_at, 1)}), flush=True)
        held = opened.enter_context(held_card({**os.environ, **environment})) if on_gpu else None
        yield models, held, environment


def _reached(figures: dict[str, Any]) -> bool:
    return "requests" in figures and not figures["stopped"] and not figures.get("not_started")


def figures_of(found: dict[int, dict[str, Any]], wanted: list[int], exit_codes: list[int]) -> dict[str, Any]:
    """What all budgets come to, as far as they were reached."""
    runs = list(found.values())
    return {
        "simulated": False,
        "requests": min((each.get("requests", 0) for each in runs), default=0),
        "real_size_requests": sum(each.get("real_size_requests", 0) for each in runs),
        "oom_unrecovered": sum(each.get("oom_unrecovered", 0) for each in runs),
        "deaths": sum(each.get("deaths", 0) for each in runs) + sum(code != 0 for code in exit_codes),
        "leaked_bytes": max((each.get("leaked_bytes", 0) for each in runs), default=0),
        "not_reached": [each for each in wanted if not _reached(found.get(each, {}))],
        "budgets_gib": {str(budget): each for budget, each in found.items()},
    }


def main() -> int:
    """Runs the budgets one after another, and prints the result last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=14, help="clips and replies that must be done at each budget")
    parser.add_argument("--budgets", default="8,12,16,24", help="GiB of the cards")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--gpu-index", type=int, default=0, help="which of the GPUs that can be seen")
    parser.add_argument("--tiny", action="store_true", help="the same shape of models at a fraction of the size")
    parser.add_argument("--models", type=Path, help="folder of the models, made there if missing; else a temporary one")
    parser.add_argument("--budget-s", type=float, default=60.0, help="a budget's rounds end after so long")
    parser.add_argument("--whole-s", type=float, default=260.0, help="everything ends after so long")
    parser.add_argument("--write", action="store_true", help="into benchmarks/results/")
    read = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no child outlives a run that is cut short
    ends_at = time.monotonic() + read.whole_s
    found: dict[int, dict[str, Any]] = {}
    exit_codes: list[int] = []
    wanted = [int(each) for each in read.budgets.split(",")]
    card = "cpu"
    with prepared(read) as (models, held, environment):
        card = held.name.split()[-1].lower() if held is not None else card
        for budget, figures in run(read, models, held, environment, ends_at, exit_codes):
            found[budget] = figures
            print(json.dumps({"budget": budget, **figures}), flush=True)
    total = figures_of(found, wanted, exit_codes)
    line = result_of(total, where=card, libraries=("torch", "transformers", "diffusers", "grpcio"))
    if read.write:
        write_result(line, "memory_stress_real", card)
    if os.environ.get("OUT"):
        (Path(os.environ["OUT"]) / f"memory_stress_real-{card}.json").write_text(line + "\n", encoding="utf-8")
    print(line, flush=True)
    return 1 if total["oom_unrecovered"] + total["deaths"] + total["leaked_bytes"] or total["not_reached"] else 0


if __name__ == "__main__":
    sys.exit(main())
