"""Sends the model to sleep and wakes it: when told to, when nobody asks for long, and when it is another server's turn.

It does not know how the weights move (`SleepingModel`), nor whose turn it is (`DeviceTurn`). It runs in the engine's
thread, whose gate it is.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from halfreel.gpu.v1 import gpu_pb2
from halfreel_runtime.errors import Cancelled, FatalError, OutOfMemory, WakeFailed
from halfreel_runtime.failures import engine_error, release_frames
from halfreel_runtime.instruments import Instruments
from halfreel_runtime.memory import MemoryMonitor
from halfreel_runtime.server_settings import ModelServerSettings
from halfreel_runtime.sleeping_model import SleepingModel
from halfreel_runtime.turn import DeviceTurn, Neighbour

_logger = logging.getLogger(__name__)

# How often a server that has nothing to do looks whether another wants its place, and a batch whether to end.
_LOOK_S = 0.02
# What processes hold that take no turns is looked at so often at least: asking the driver costs a millisecond.
_STRANGERS_S = 2.0
# A model that could not be woken is tried again so often, while nobody asks for it.
_TRY_AGAIN_S = 5.0
# The driver needs a moment to clear up after a server that was killed, whose turn is free at once.
_ROOM_WITHIN_S = 5.0
# Of the weights' bytes, what the driver must count as given back; less is a bug, and logged. The second is what a
# process takes meanwhile for other things.
_RETURNED_RATIO, _NOISE_BYTES = 0.99, 16 * 2**20


@dataclass(frozen=True)
class Moved:
    """What falling asleep came to: bytes that were given back, and seconds; zeros where there was nothing to do."""

    freed_bytes: int = 0
    seconds: float = 0.0


class Sleeper:
    """The gate of an engine whose model can sleep.

    Args:
        memory: measures what is given back, and tells where the weights are.
        turn: this server's place among those on the same device; None where the device is its own.
        idle_sleep_s: a model that nobody asked for so long goes to sleep; 0 for never.
        clear_before: gives cached memory back before a request.
        clear_after: gives cached memory back after a request.
        instruments: count how long moving the weights took, and waiting for the turn; None for nobody.
    """

    def __init__(
        self,
        memory: MemoryMonitor,
        *,
        turn: DeviceTurn | None = None,
        idle_sleep_s: float = 0.0,
        clear_before: bool = False,
        clear_after: bool = False,
        instruments: Instruments | None = None,
    ) -> None:
        self._memory = memory
        self._turn = turn
        self._idle_sleep_s = idle_sleep_s
        self._clear_before = clear_before
        self._clear_after = clear_after
        self._instruments = instruments
        self._model: SleepingModel | None = None
        self._used_at = time.monotonic()
        self._tried_at = 0.0
        self._looked_at, self._yielding = 0.0, False
        self._expected_bytes = self._told_bytes = 0
        self._strangers_at = 0.0
        self.woken_count = 0
        self.last_wake_s = 0.0
        memory.add_suggester(self._suggest)

    @classmethod
    def of(
        cls,
        settings: ModelServerSettings,
        memory: MemoryMonitor,
        *,
        service: str,
        capacity_bytes: int,
        instruments: Instruments | None = None,
    ) -> Sleeper:
        """The sleeper that the settings mean.

        Args:
            settings: of turns, idle sleep and clearing.
            memory: of the device.
            service: what this server is, for others on the device.
            capacity_bytes: what all servers on the device may take together.
            instruments: count sleep, wake and turns; None for nobody.

        Raises:
            FailedPrecondition: turns_dir can't be used.
        """
        return cls(
            memory,
            turn=DeviceTurn.of(settings, memory.device, service=service, capacity_bytes=capacity_bytes),
            idle_sleep_s=settings.idle_sleep_s,
            clear_before=settings.clear_memory_before,
            clear_after=settings.clear_memory_after,
            instruments=instruments,
        )

    # What anybody may ask.

    @property
    def state(self) -> gpu_pb2.ModelState.ValueType:
        """Where the weights are."""
        return self._memory.model_state

    @property
    def wake_failed(self) -> bool:
        """Whether the model sleeps because it could not be woken."""
        return self.state == gpu_pb2.MODEL_STATE_WAKE_FAILED

    def neighbours(self) -> list[Neighbour]:
        """The other servers on the device that can be asked to sleep, by wanting their turn."""
        return self._turn.neighbours() if self._turn is not None else []

    def expect(self, needed_bytes: int, *, alone: bool = False) -> None:
        """A request will take so much of the device, allocator and context together; counts from the next job on.

        Args:
            needed_bytes: at most.
            alone: whether its plan fits only while the neighbours sleep.
        """
        self._expected_bytes = max(self._expected_bytes, needed_bytes)
        if alone and self._turn is not None:
            self._turn.crowded = True

    def guess(self, needed_bytes: int) -> None:
        """About what the server will take of the device at most, by its model's files; counts until it is loaded.

        A server that is not known to fit beside the others has them sleep while it loads. Call it before the engine
        starts.
        """
        if self._turn is not None:
            self._turn.tell(needs_bytes=needed_bytes, held_bytes=0)

    # The life of the model.

    def model_loaded(self, model: SleepingModel) -> None:
        """Takes the model, loaded and warm; called once, in the engine's thread."""
        self._model = model
        self._used_at = time.monotonic()
        self._set_state(gpu_pb2.MODEL_STATE_AWAKE)
        if self._idle_sleep_s or (self._turn is not None and self._turn.alone):
            model.prepare_sleep()

    def sleep(self) -> Moved:
        """Takes the model off the device, and gives the turn back; the second time changes nothing.

        Raises:
            FatalError: the device failed.
            Exception: what the model raised; it is awake.
        """
        model = self._model
        if model is None or self.state != gpu_pb2.MODEL_STATE_AWAKE:
            return Moved()
        before, began_at = self._memory.held(), time.monotonic()
        self._set_state(gpu_pb2.MODEL_STATE_FALLING_ASLEEP)
        try:
            model.sleep()
        except Exception as error:
            release_frames(error)
            self._set_state(gpu_pb2.MODEL_STATE_AWAKE)
            known = engine_error(error)
            if known is error:
                raise
            raise known from error
        if self._memory.device.kind == "cpu":  # its heap keeps what was freed; on a GPU this would take longest of all
            self._memory.clear()
        self._set_state(gpu_pb2.MODEL_STATE_ASLEEP)
        moved = Moved(max(0, before - self._memory.held()), time.monotonic() - began_at)
        if self._instruments is not None:
            self._instruments.slept(moved.seconds)
        if self._turn is not None:
            self._turn.release()
        figures = {"freed_bytes": moved.freed_bytes, "weight_bytes": model.weight_bytes}
        _logger.info("model_asleep", extra={**figures, "seconds": round(moved.seconds, 3)})
        if moved.freed_bytes < _RETURNED_RATIO * model.weight_bytes - _NOISE_BYTES:
            _logger.warning("sleep_kept_memory", extra=figures)
        return moved

    def wake(self) -> None:
        """Brings the model back; the second time changes nothing. The turn must be held.

        Raises:
            WakeFailed: it sleeps as before, and can be tried again; its cause is what went wrong.
            FatalError: the device failed.
        """
        model = self._model
        if model is None or self.state == gpu_pb2.MODEL_STATE_AWAKE:
            return
        began_at = time.monotonic()
        self._set_state(gpu_pb2.MODEL_STATE_WAKING)
        try:
            self._wait_for_room(model.weight_bytes)
            model.wake()
        except Exception as error:
            release_frames(error)
            self._tried_at = time.monotonic()
            self._set_state(gpu_pb2.MODEL_STATE_WAKE_FAILED)
            known = engine_error(error)
            if isinstance(known, FatalError):
                raise known from error
            self._memory.clear()
            if self._turn is not None:
                self._turn.release()
            _logger.error("wake_failed", extra={"reason": str(error)})
            raise self._wake_failed(model, known) from error
        self._used_at = time.monotonic()
        self._set_state(gpu_pb2.MODEL_STATE_AWAKE)
        self.last_wake_s = time.monotonic() - began_at
        self.woken_count += 1
        if self._instruments is not None:
            self._instruments.woke(self.last_wake_s)
        _logger.info("model_awake", extra={"seconds": round(self.last_wake_s, 3), "weight_bytes": model.weight_bytes})

    # The gate.

    @property
    def look_s(self) -> float | None:
        """How soon `idle` should be called."""
        looks = [_LOOK_S] if self._turn is not None and self._turn.held else []
        if self._idle_sleep_s and self.state == gpu_pb2.MODEL_STATE_AWAKE:
            looks.append(max(_LOOK_S, self._used_at + self._idle_sleep_s - time.monotonic()))
        if self.wake_failed:
            looks.append(max(_LOOK_S, self._tried_at + _TRY_AGAIN_S - time.monotonic()))
        return min(looks, default=None)

    def before_load(self, wanted: Callable[[], bool]) -> None:
        """Waits for the turn: loading takes room."""
        if self._turn is not None and not self._turn.acquire(wanted):
            raise Cancelled("The model is not wanted any more.")
        self._look_at_strangers()

    def enter(self, wanted: Callable[[], bool]) -> None:
        """Waits for the turn, and wakes the model."""
        if self._turn is not None:
            # What `leave` said still holds, but for what was admitted since: a first token waits for this.
            if not self._turn.held or self._expected_bytes > self._told_bytes:
                self._tell()
            if self._turn.held and not self._turn.good:
                self._sleep_if_possible()
            had, began_at = self._turn.held, time.monotonic()
            if not self._turn.acquire(wanted):
                raise Cancelled("The call was cancelled.")
            if self._instruments is not None:
                self._instruments.turn_waited(time.monotonic() - began_at)
            if not had or time.monotonic() - self._strangers_at >= _STRANGERS_S:
                self._look_at_strangers()
            self._looked_at, self._yielding = time.monotonic(), False
        self.wake()
        if self._clear_before:
            self._memory.clear()

    def yielding(self) -> bool:
        """Whether another waits, and this server has had its time; looked up now and then, for it reads a folder."""
        if self._turn is None:
            return False
        now = time.monotonic()
        if now - self._looked_at >= _LOOK_S:
            self._looked_at, self._yielding = now, self._turn.should_yield(has_waiting=True)
        return self._yielding

    def leave(self, has_waiting: bool) -> None:
        """Sleeps where it is another's turn."""
        self._used_at = time.monotonic()
        if self._clear_after:
            self._memory.clear()
        if self._turn is not None:
            self._tell()
            if self._turn.should_yield(has_waiting):
                self._sleep_if_possible()
            elif not has_waiting and time.monotonic() - self._strangers_at >= _STRANGERS_S / 2:
                self._look_at_strangers()

    def idle(self) -> None:
        """Sleeps for another, or because nobody has asked for long; tries again to wake."""
        now = time.monotonic()
        wished = self._turn is not None and self._turn.should_yield(has_waiting=False)
        if wished or (self._idle_sleep_s and now - self._used_at >= self._idle_sleep_s):
            self._sleep_if_possible()
        elif self._turn is not None and self._turn.held and now - self._strangers_at >= _STRANGERS_S / 2:
            self._look_at_strangers()
        elif self.wake_failed and now - self._tried_at >= _TRY_AGAIN_S:
            self._try_again()

    # Parts.

    def _sleep_if_possible(self) -> None:
        """Sleeps; where that fails the model stays, and the next look tries again."""
        try:
            self.sleep()
        except FatalError:
            raise
        except Exception as error:
            self._used_at = time.monotonic()
            _logger.error("sleep_failed", extra={"reason": str(error)})

    def _try_again(self) -> None:
        self._tried_at = time.monotonic()
        if self._turn is not None and not self._turn.try_acquire():
            return  # another works: this server asks for its turn when somebody asks for it
        try:
            self.wake()
        except WakeFailed:
            return

    def _wait_for_room(self, needed_bytes: int) -> None:
        """Waits a moment for memory that a server which has just died still seems to hold."""
        if self._memory.device.kind != "cuda":
            return
        until = time.monotonic() + _ROOM_WITHIN_S
        while (free := self._memory.free_bytes()) is not None and free < needed_bytes and time.monotonic() < until:
            time.sleep(_LOOK_S)

    def _wake_failed(self, model: SleepingModel, cause: BaseException) -> WakeFailed:
        short = isinstance(cause, OutOfMemory)
        metadata = {"needed_bytes": str(model.weight_bytes)}
        if (free := self._memory.free_bytes()) is not None:
            metadata["free_bytes"] = str(free)
        why = "its device has too little free memory" if short else "its weights did not come back"
        return WakeFailed(
            f"The model sleeps and could not be woken: {why}; try again.",
            metadata=metadata if short else None,
            retry_after_s=_TRY_AGAIN_S,
        )

    def _tell(self) -> None:
        """Says to the others what this server needs: the most that it ever took, or will."""
        if self._turn is None or self._model is None:
            return
        device = self._memory.report().devices[0]
        peak = device.process_peak.reserved_bytes + device.context_bytes
        awake = self.state == gpu_pb2.MODEL_STATE_AWAKE
        held = device.reserved_bytes if awake else 0
        needs = max(peak, self._model.weight_bytes + device.context_bytes, self._expected_bytes)
        self._told_bytes = needs
        self._turn.tell(needs_bytes=needs, held_bytes=held, context_bytes=device.context_bytes)

    def _look_at_strangers(self) -> None:
        """Measures what processes hold that take no turns, while those that do are all asleep but this one."""
        self._strangers_at = time.monotonic()
        if self._turn is not None and self._turn.undisturbed:
            others = self._memory.report().devices[0].other_processes_bytes
            self._turn.strangers_bytes = max(0, others - sum(each.context_bytes for each in self._turn.neighbours()))
            self._turn.crowded = False

    def _set_state(self, state: gpu_pb2.ModelState.ValueType) -> None:
        self._memory.model_state = state
        if state in (gpu_pb2.MODEL_STATE_AWAKE, gpu_pb2.MODEL_STATE_ASLEEP):
            self._tell()

    def _suggest(self) -> list[gpu_pb2.Suggestion]:
        """That a neighbour sleeps, while memory is short."""
        return [
            gpu_pb2.Suggestion(
                code="sleep_neighbour",
                text=f"Call Sleep of the {each.service} server on the same device.",
                saved_bytes=each.held_bytes,
            )
            for each in self.neighbours()
            if each.held_bytes
        ]
