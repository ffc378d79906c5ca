"""Whose turn it is: order, exclusion, who fits beside whom, dead owners, and a folder that nobody else may enter."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from halfreel_runtime.device import CPU, Device
from halfreel_runtime.errors import FailedPrecondition
from halfreel_runtime.settings import ModelServerSettings
from halfreel_runtime.turn import DeviceTurn, Neighbour, turns_folder

GIB = 2**30
Make = Callable[..., DeviceTurn]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    with contextlib.ExitStack() as stack:

        def turn(**options: object) -> DeviceTurn:
            made = DeviceTurn(tmp_path / "turns", "GPU-1", service="video", **options)  # type: ignore[arg-type]
            stack.callback(made.close)
            return made

        yield turn


def forever() -> bool:
    return True


def acquired(turn: DeviceTurn) -> threading.Thread:
    """A thread that waits for the turn."""
    thread = threading.Thread(target=turn.acquire, args=(forever,), daemon=True)
    thread.start()
    return thread


def until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.005)


def test_one_has_it_and_the_other_when_it_is_given_back(make: Make) -> None:
    one, two = make(), make()
    assert one.acquire(forever)
    assert not two.try_acquire()
    waiting = acquired(two)
    until(one.wished)
    time.sleep(0.05)
    assert not two.held
    one.release()
    waiting.join(20)
    assert two.held
    assert not two.wished()


def test_wishes_are_met_in_the_order_they_came(make: Make) -> None:
    first, *others = (make() for _ in range(6))
    first.acquire(forever)
    order: list[int] = []

    def wait(number: int, turn: DeviceTurn) -> None:
        turn.acquire(forever)
        order.append(number)
        turn.release()

    threads = []
    for number, turn in enumerate(others):
        threads.append(threading.Thread(target=wait, args=(number, turn)))
        threads[-1].start()
        time.sleep(0.03)
    first.release()
    for each in threads:
        each.join(20)
    assert order == [0, 1, 2, 3, 4]


def test_who_gives_it_back_and_wants_it_again_stands_last(make: Make) -> None:
    one, two = make(), make()
    one.acquire(forever)
    waiting = acquired(two)
    until(one.wished)
    one.release()
    again = acquired(one)
    waiting.join(20)
    assert two.held
    assert not one.held
    until(two.wished)
    two.release()
    again.join(20)
    assert one.held


def test_nobody_waits_for_what_is_not_wanted_any_more(make: Make) -> None:
    one, two = make(), make()
    one.acquire(forever)
    wanted = iter([True, True, False])
    assert not two.acquire(lambda: next(wanted))
    assert not one.wished()


def test_it_is_kept_for_its_time_while_there_is_work_and_given_at_once_while_there_is_none(make: Make) -> None:
    one, two = make(tenure_s=3), make()
    one.acquire(forever)
    assert not one.should_yield(has_waiting=False)
    waiting = acquired(two)
    until(one.wished)
    assert one.should_yield(has_waiting=False)
    assert not one.should_yield(has_waiting=True)
    time.sleep(3)
    assert one.should_yield(has_waiting=True)
    one.release()
    assert not one.should_yield(has_waiting=True)
    waiting.join(20)


def test_those_that_fit_are_awake_together_and_those_that_do_not_one_by_one(make: Make) -> None:
    one, two = (make(capacity_bytes=16 * GIB) for _ in range(2))
    one.tell(needs_bytes=6 * GIB, held_bytes=0)
    two.tell(needs_bytes=10 * GIB, held_bytes=0)
    assert one.acquire(forever)
    assert two.acquire(forever)
    assert one.good
    assert two.good
    assert one.neighbours() == [Neighbour("video", 10 * GIB, 0)]
    two.tell(needs_bytes=10 * GIB + 1, held_bytes=0)  # it has seen a larger request
    assert not two.good
    assert not one.good
    two.release()
    waiting = acquired(two)
    until(one.wished)
    assert not two.held
    one.release()
    waiting.join(20)
    assert two.held
    assert not one.try_acquire()


def test_what_strangers_hold_is_not_there_to_be_shared(make: Make) -> None:
    one, two = make(capacity_bytes=16 * GIB), make(capacity_bytes=16 * GIB)
    one.tell(needs_bytes=6 * GIB, held_bytes=0)
    two.tell(needs_bytes=9 * GIB, held_bytes=0, context_bytes=GIB)
    one.acquire(forever)
    two.acquire(forever)
    assert not one.undisturbed
    one.strangers_bytes = GIB
    assert one.good
    one.strangers_bytes = GIB + 1
    assert not one.good
    two.release()
    one.release()
    one.acquire(forever)
    assert one.undisturbed
    assert one.neighbours() == [Neighbour("video", 9 * GIB, 0, GIB)]


def test_a_newcomer_that_does_not_know_its_needs_is_alone(make: Make) -> None:
    one = make(capacity_bytes=16 * GIB)
    one.tell(needs_bytes=GIB, held_bytes=0)
    one.acquire(forever)
    assert one.good
    two = make(capacity_bytes=16 * GIB)
    assert one.neighbours() == []  # it says nothing yet
    waiting = acquired(two)
    until(one.wished)
    assert not one.good
    one.release()
    waiting.join(20)
    two.tell(needs_bytes=GIB, held_bytes=GIB)
    again = acquired(one)
    until(two.wished)
    two.release()
    again.join(20)
    assert two.acquire(forever)
    assert one.good
    assert two.good


def test_the_kind_of_turn_follows_who_is_there_while_it_waits(make: Make) -> None:
    one, two = make(capacity_bytes=16 * GIB), make(capacity_bytes=16 * GIB)
    one.tell(needs_bytes=10 * GIB, held_bytes=0)
    two.tell(needs_bytes=10 * GIB, held_bytes=0)
    one.acquire(forever)
    waiting = acquired(two)
    until(one.wished)
    assert not two.held
    two.tell(needs_bytes=GIB, held_bytes=0)
    time.sleep(0.05)
    one.release()
    waiting.join(20)
    assert one.acquire(forever)
    assert two.held


PROGRAM = """
import sys, time
from pathlib import Path
from halfreel_runtime.turn import DeviceTurn
turn = DeviceTurn(Path(sys.argv[1]), "GPU-1", service="llm")
turn.tell(needs_bytes=5, held_bytes=3)
if sys.argv[2] == "hold":
    turn.acquire(lambda: True)
    print("held", flush=True)
else:
    print("waits", flush=True)
    turn.acquire(lambda: True)
time.sleep(60)
"""


@contextlib.contextmanager
def process(folder: Path, what: str) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen([sys.executable, "-c", PROGRAM, str(folder), what], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline().strip()
        yield child
    finally:
        child.kill()
        child.communicate()


def test_a_killed_holder_and_a_killed_waiter_hold_nobody_up(make: Make, tmp_path: Path) -> None:
    one = make()
    with process(tmp_path / "turns", "hold") as holder:
        assert one.neighbours() == [Neighbour("llm", 5, 3)]
        with process(tmp_path / "turns", "wait") as waiter:
            time.sleep(0.2)
            mine = acquired(one)
            time.sleep(0.2)
            os.kill(waiter.pid, signal.SIGKILL)
            waiter.wait()
        assert not one.held
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        mine.join(20)
    assert one.held
    assert one.neighbours() == []
    assert not one.wished()
    left = sorted(each.name for each in (tmp_path / "turns" / "GPU-1").iterdir())
    assert left == sorted(["turn", f"server-{one._name}"])


def test_six_servers_never_meet_and_all_come_through(make: Make) -> None:
    inside: list[int] = []
    done: list[int] = []

    def work(number: int, seed: int) -> None:
        turn, dice = make(), random.Random(seed)
        for _ in range(8):
            turn.acquire(forever)
            inside.append(number)
            time.sleep(dice.random() * 0.004)
            assert inside == [number]
            inside.remove(number)
            turn.release()
            done.append(number)

    threads = [threading.Thread(target=work, args=(each, each)) for each in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(30)
    assert sorted(done) == sorted(list(range(6)) * 8)


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o707])
def test_a_folder_that_others_may_enter_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "turns").mkdir()
    (tmp_path / "turns").chmod(mode)
    with pytest.raises(FailedPrecondition, match="turns_dir must be a folder of this user's own"):
        DeviceTurn(tmp_path / "turns", "GPU-1", service="llm")


def test_a_folder_that_can_not_be_made_and_a_link_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FailedPrecondition, match="can't be used"):
        DeviceTurn(tmp_path / "file" / "turns", "GPU-1", service="llm")
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(FailedPrecondition, match="must be a folder"):
        DeviceTurn(tmp_path / "link", "GPU-1", service="llm")


@pytest.mark.parametrize("name", ["../other", "GPU/1", "", "a b"])
def test_a_device_is_no_way_out_of_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(FailedPrecondition, match="can't be the name of a folder"):
        DeviceTurn(tmp_path, name, service="llm")


def test_the_settings_say_whether_and_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Device("cuda", 0, "GPU-1", "a card", "cuda:0")

    def turn(device: Device, **settings: object) -> DeviceTurn | None:
        chosen = ModelServerSettings(turns_dir=tmp_path / "turns", **settings)  # type: ignore[arg-type]
        made = DeviceTurn.of(chosen, device, service="llm", capacity_bytes=GIB)
        if made is not None:
            made.close()
        return made

    assert turn(CPU) is None
    assert turn(gpu, turns="off") is None
    assert not (tmp_path / "turns").exists()
    assert turn(gpu) is not None
    assert turn(CPU, turns="on") is not None
    (tmp_path / "turns").chmod(0o755)
    assert turn(gpu) is None  # said in the log
    with pytest.raises(FailedPrecondition):
        turn(gpu, turns="on")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert turns_folder(None) == Path("/run/user/7/halfreel")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert turns_folder(None).name == f"halfreel-{os.geteuid()}"
