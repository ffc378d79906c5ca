"""Steps at work, and what they hear: cancel, stall, stop; and what a step does about a call that failed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from grpc_status import rpc_status

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel_gateway.failures import FilmEndedError, FilmFailedError
from halfreel_gateway.patience import MAX_LOST_COUNT, Patience
from halfreel_gateway.running import GatewayStoppingError, RunningSteps, StalledError
from halfreel_gateway.store import FilmPosition
from halfreel_runtime import errors


class Call:
    """A call that can be cancelled."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()

    def cancel(self) -> None:
        self.cancelled.set()

    def read(self) -> None:
        """Blocks until cancelled, then fails as gRPC does."""
        assert self.cancelled.wait(60)
        raise Failed(grpc.StatusCode.CANCELLED)


class Failed(grpc.RpcError):
    """A call's failure, with our details when made of one of our errors."""

    def __init__(self, what: grpc.StatusCode | errors.HalfreelError) -> None:
        self._status = None
        if isinstance(what, errors.HalfreelError):
            self._status = rpc_status.to_status(errors.status_of(what, "r"))
            what = self._status.code
        self._code = what

    def code(self) -> Any:
        return self._code

    def details(self) -> str:
        return self._status.details if self._status else "ipv4:10.0.0.1:5: nobody there"

    def trailing_metadata(self) -> Any:
        return self._status.trailing_metadata if self._status else ()


class Films:
    """Positions as the database would tell them."""

    def __init__(self) -> None:
        self.states: dict[str, int] = {"f": pb.Film.STATE_RENDERING}

    def __call__(self, film_ids: Any) -> dict[str, FilmPosition]:
        return {key: FilmPosition(self.states[key], 1) for key in film_ids if key in self.states}


@pytest.fixture
def films() -> Films:
    return Films()


@pytest.fixture
def running(films: Films) -> Iterator[RunningSteps]:
    steps = RunningSteps(stall_s=3.0)  # a busy neighbour, who may take the cores for two seconds, is no stall
    steps.start(films)
    yield steps
    steps.stop()


def test_a_film_that_ends_here_ends_its_call_at_once(running: RunningSteps) -> None:
    took_s = []
    for _ in range(3):  # others use this machine as well: the quickest tells
        call, began_s = Call(), time.monotonic()
        threading.Timer(0.05, running.film_changed, ("f",), {"ended": True}).start()
        with running.step("f", calls_server=True) as run, pytest.raises(FilmEndedError), run.calling(call):
            call.read()
        took_s.append(time.monotonic() - began_s)
    assert min(took_s) < 0.3


@pytest.mark.parametrize("state", [pb.Film.STATE_CANCELLED, None])
def test_a_film_that_ends_elsewhere_is_noticed(running: RunningSteps, films: Films, state: int | None) -> None:
    films.states = {} if state is None else {"f": state}
    took_s = []
    for _ in range(3):  # as above
        call, began_s = Call(), time.monotonic()
        with running.step("f", calls_server=True) as run, pytest.raises(FilmEndedError), run.calling(call):
            call.read()
        took_s.append(time.monotonic() - began_s)
    assert min(took_s) < 0.9


def test_a_silent_server_stalls_one_call_only(running: RunningSteps) -> None:
    with running.step("f", calls_server=True) as run:
        silent = Call()
        with pytest.raises(StalledError), run.calling(silent):
            silent.read()
        run.check()
        busy = Call()
        with run.calling(busy):
            for _ in range(6):
                time.sleep(0.6)
                run.beat()
            assert not busy.cancelled.is_set()


def test_the_stop_ends_all_steps_and_those_to_come(films: Films) -> None:
    running = RunningSteps(stall_s=9)
    running.start(films)
    threading.Timer(0.05, running.stop).start()
    with running.step("f", calls_server=False) as run, pytest.raises(GatewayStoppingError):
        run.sleep(5)
    with running.step("f", calls_server=False) as run, pytest.raises(GatewayStoppingError):
        run.check()
    assert not isinstance(GatewayStoppingError(), Exception), "a workflow would store it as the step's result"


def test_a_failure_of_its_own_stays_what_it_is(running: RunningSteps) -> None:
    call = Call()
    with running.step("f", calls_server=True) as run, pytest.raises(ZeroDivisionError), run.calling(call):
        raise ZeroDivisionError
    assert call.cancelled.is_set()


def test_a_film_waits_when_all_its_callers_do(running: RunningSteps) -> None:
    with (
        running.step("f", calls_server=True) as one,
        running.step("f", calls_server=True) as two,
        running.step("f", calls_server=False),
    ):
        one.waiting_reason = "no server"
        assert running.waiting_reason("f") == ""
        two.waiting_reason = "no server"
        assert running.waiting_reason("f") == "no server"
    assert running.waiting_reason("f") == ""


class Announced:
    """What was announced of one step."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def waits(self, run: Any, reason: str) -> None:
        run.waiting_reason = reason
        self.reasons.append(reason)


@pytest.fixture
def announced() -> Announced:
    return Announced()


@pytest.fixture
def patience(running: RunningSteps, announced: Announced, monkeypatch: pytest.MonkeyPatch) -> Iterator[Patience]:
    with running.step("f", calls_server=True) as run:
        monkeypatch.setattr(run, "sleep", lambda _: None)
        yield Patience(run, announced, "video")  # type: ignore[arg-type]


def test_a_server_that_is_away_is_waited_for(patience: Patience, announced: Announced) -> None:
    for _ in range(1000):
        patience.call_failed(Failed(grpc.StatusCode.UNAVAILABLE), began=False)
    for error in (errors.Draining("d"), errors.ModelLoading("l")):
        for _ in range(100):
            patience.call_failed(Failed(error), began=True)
    assert set(announced.reasons) == {"no video server answers; the film goes on when one does"}
    patience.heard()
    assert announced.reasons[-1] == ""


def test_a_scene_that_ends_every_server_ends_too(patience: Patience) -> None:
    with pytest.raises(FilmFailedError) as caught:
        for _ in range(MAX_LOST_COUNT):
            patience.call_failed(Failed(grpc.StatusCode.UNAVAILABLE), began=True)
    assert caught.value.error.reason == "SERVER_LOST"


def test_a_model_that_does_not_wake_is_told_as_such(
    patience: Patience, announced: Announced, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(patience._run, "sleep", slept.append)
    for _ in range(2 * MAX_LOST_COUNT):
        patience.call_failed(Failed(errors.WakeFailed("no room", retry_after_s=7.0)), began=True)
    assert set(slept) == {7.0}
    assert set(announced.reasons) == {"the video model can't be woken; the film goes on when it can"}


def test_a_full_queue_is_waited_for(patience: Patience, announced: Announced, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(patience._run, "sleep", slept.append)
    for _ in range(50):
        patience.call_failed(Failed(errors.QueueFull("full", retry_after_s=3.0)), began=False)
    assert min(slept) >= 3.0
    assert max(slept) <= 3.0 * 1.25
    assert len(set(slept)) > 1, "all who wait would come back at once"
    assert set(announced.reasons) == {"all video servers are busy"}


@pytest.mark.parametrize(
    "error",
    [
        errors.InvalidArgument("step_count is 99"),
        errors.OutOfMemory("too large", metadata={"needed_bytes": "5", "free_bytes": "4"}),
        errors.Internal("not a number", reason="NAN_DETECTED"),
        errors.FailedPrecondition("no"),
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNIMPLEMENTED,
    ],
)
def test_a_refusal_is_final(patience: Patience, error: Any) -> None:
    with pytest.raises(FilmFailedError) as caught:
        patience.call_failed(Failed(error), began=True)
    told = caught.value.error
    if isinstance(error, errors.HalfreelError):
        assert (told.reason, told.message, dict(told.metadata)) == (error.reason, error.message, error.metadata)
    else:
        assert told.reason == error.name
        assert "10.0.0.1" not in told.message


@pytest.mark.parametrize(
    "error",
    [
        errors.Internal("boom", metadata={"request_id": "r"}),
        errors.SlowReader("slow"),
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNKNOWN,
    ],
)
def test_what_may_pass_is_tried_three_times(patience: Patience, error: Any) -> None:
    patience.call_failed(Failed(error), began=True)
    patience.call_failed(Failed(error), began=True)
    with pytest.raises(FilmFailedError):
        patience.call_failed(Failed(error), began=True)
