"""Whose turn it is on a device that servers share: a lock on a file, which the system frees when its owner dies.

A folder a device holds three kinds of files, and nothing in them is believed that no living process has locked:

- `turn`: locked by whoever has its weights on the device; shared by those that fit beside each other, by one alone
  where they don't.
- `wish-<time>-<mode>-<number>`: somebody wants the turn. Wishes are met in the order of their times, so nobody starves;
  whoever holds the turn looks for wishes between its jobs, and goes to sleep for them.
- `server-<number>`: what each server says that it needs, from which each works out whether all of them fit.

No server calls another, so that there is no address to know and no credential to keep. It does not know what moves the
weights (`Sleeper`).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from halfreel_runtime.device import Device
from halfreel_runtime.errors import FailedPrecondition
from halfreel_runtime.locked_file import LockedFile, private_folder, remove_unnamed, removed_if_dead
from halfreel_runtime.server_settings import ModelServerSettings

_logger = logging.getLogger(__name__)

# Between two looks of a server that waits for its turn: little against the quarter of a second that a model moves for.
_LOOK_S = 0.01
_WISH = re.compile(r"wish-(\d{20})-(sh|ex)-(\w+)")


@dataclass(frozen=True)
class Neighbour:
    """Another living server on the same device.

    Attributes:
        service: such as "video".
        needs_bytes: the most that it takes of the device; 0 where it does not know yet.
        held_bytes: what would come free if it slept now; 0 while it sleeps.
        context_bytes: what the driver keeps for it even then.
    """

    service: str
    needs_bytes: int
    held_bytes: int
    context_bytes: int = 0


def turns_folder(setting: Path | None) -> Path:
    """The folder that all servers of one user on one machine share, where no setting names another."""
    if setting is not None:
        return setting
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "halfreel"
    return Path(tempfile.gettempdir()) / f"halfreel-{os.geteuid()}"


class DeviceTurn:
    """This server's place among those that share a device; used by the engine's thread, but for the questions.

    Args:
        folder: shared by the servers, and theirs alone: 0700.
        gpu_uuid: the device.
        service: what this server is, for the others.
        capacity_bytes: what all of them may take together; 0 where they are never awake at the same time.
        tenure_s: how long a server that has requests waiting keeps the turn from another that wants it.

    Raises:
        FailedPrecondition: the folder can't be used, or others could.
    """

    def __init__(
        self, folder: Path, gpu_uuid: str, *, service: str, capacity_bytes: int = 0, tenure_s: float = 5.0
    ) -> None:
        self._folder = private_folder(folder, gpu_uuid)
        remove_unnamed(self._folder)
        self._capacity_bytes = capacity_bytes
        self._tenure_s = tenure_s
        self._turn = os.open(self._folder / "turn", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._mode: int | None = None  # of the lock that is held
        self._since = 0.0
        self._told = Neighbour(service, 0, 0)
        # What processes hold that take no turns; it is nobody's to give.
        self.strangers_bytes = 0
        # Whether there was too little room beside the others, whatever the figures say.
        self.crowded = False
        self._name = f"{os.getpid()}{os.urandom(4).hex()}"
        self._entry: LockedFile | None = None  # nobody hears of this server before it says what it needs, or waits

    @classmethod
    def of(
        cls, settings: ModelServerSettings, device: Device, *, service: str, capacity_bytes: int
    ) -> DeviceTurn | None:
        """The turn that the settings mean; None where this server takes none.

        Args:
            settings: turns, turns_dir and turn_s.
            device: what is shared. A CPU is shared only where that is asked for: its memory is the host's.
            service: what this server is.
            capacity_bytes: what all servers on the device may take together.

        Raises:
            FailedPrecondition: the folder can't be used; with turns set to auto a line of the log says so instead.
        """
        if settings.turns == "off" or (settings.turns == "auto" and device.kind == "cpu"):
            return None
        capacity = capacity_bytes if settings.turns == "auto" else 0
        folder = turns_folder(settings.turns_dir)
        try:
            return cls(folder, device.gpu_uuid, service=service, capacity_bytes=capacity, tenure_s=settings.turn_s)
        except FailedPrecondition as error:
            if settings.turns == "on":
                raise
            _logger.warning("no_turns", extra={"reason": str(error)})
            return None

    # What anybody may ask.

    @property
    def held(self) -> bool:
        """Whether this server may have its weights on the device."""
        return self._mode is not None

    @property
    def undisturbed(self) -> bool:
        """Whether no other server has its weights on the device, nor can have."""
        return self._mode == fcntl.LOCK_EX or (self.held and not self.neighbours())

    @property
    def good(self) -> bool:
        """Whether it may still: another may have come, with which it does not fit."""
        return self._mode == fcntl.LOCK_EX or (self._mode == fcntl.LOCK_SH and not self.alone)

    @property
    def alone(self) -> bool:
        """Whether this server must be awake alone: not all fit, or somebody does not know yet what it needs."""
        if not self._capacity_bytes:
            return True
        others = [each.needs_bytes for each in self.neighbours()]
        needs = [*others, self._told.needs_bytes]
        too_many = 0 in needs or sum(needs) > self._capacity_bytes - self.strangers_bytes
        return bool(others) and (too_many or self.crowded)

    def neighbours(self) -> list[Neighbour]:
        """The other living servers on this device."""
        found = []
        for path in self._living("server-"):
            if path.name != f"server-{self._name}":
                with contextlib.suppress(FileNotFoundError):  # it has just left
                    found.append(_neighbour(path.read_bytes()))
        return found

    def wished(self) -> bool:
        """Whether another waits for this server to sleep."""
        return any(self._mode == fcntl.LOCK_EX or mode == "ex" for _, mode, _ in self._wishes())

    def should_yield(self, has_waiting: bool) -> bool:
        """Whether it is time to sleep for another: at once where nothing waits here, else after the tenure."""
        if self._mode is None or (has_waiting and time.monotonic() - self._since < self._tenure_s):
            return False
        return self.wished()

    # What the engine's thread does.

    def tell(self, *, needs_bytes: int, held_bytes: int, context_bytes: int = 0) -> None:
        """Says to the others what `Neighbour` has of this server."""
        told = Neighbour(self._told.service, needs_bytes, held_bytes, context_bytes)
        if told != self._told or self._entry is None:
            self._told = told
            self._tell()

    def acquire(self, wanted: Callable[[], bool]) -> bool:
        """Waits for the turn.

        Args:
            wanted: asked while it waits: whether anybody still needs it.

        Returns:
            Whether it is held; it is not where nobody wants it any more.
        """
        if self.held:
            return True
        if self._entry is None:
            self._tell()
        asked_ns, mode = time.monotonic_ns(), self._mode_needed()
        wish = LockedFile(self._folder, self._wish_name(asked_ns, mode))
        try:
            while not (self._is_first(wish.name) and self._try(mode)):
                if not wanted():
                    return False
                time.sleep(_LOOK_S)
                if (needed := self._mode_needed()) != mode:  # others have come or gone; the place in the queue stays
                    mode = needed
                    wish.rename(self._wish_name(asked_ns, mode))
        finally:
            wish.close()
        return True

    def try_acquire(self) -> bool:
        """Takes the turn if nobody has it nor waits for it."""
        if self.held:
            return True
        return not any(self._wishes()) and self._try(self._mode_needed())

    def release(self) -> None:
        """Gives the turn back; nothing of this server may be on the device any more."""
        if self._mode is not None:
            fcntl.flock(self._turn, fcntl.LOCK_UN)
            self._mode = None

    def close(self) -> None:
        """Leaves; what is held is released."""
        self.release()
        os.close(self._turn)
        if self._entry is not None:
            self._entry.close()

    # The turn.

    def _try(self, mode: int) -> bool:
        try:
            fcntl.flock(self._turn, mode | fcntl.LOCK_NB)
        except OSError:  # BlockingIOError: another has it
            return False
        self._mode, self._since = mode, time.monotonic()
        return True

    def _mode_needed(self) -> int:
        return fcntl.LOCK_EX if self.alone else fcntl.LOCK_SH

    def _tell(self) -> None:
        content = json.dumps(asdict(self._told)).encode()
        if self._entry is None:
            self._entry = LockedFile(self._folder, f"server-{self._name}", content)
        else:
            self._entry.write(content)

    # Wishes.

    def _wish_name(self, asked_ns: int, mode: int) -> str:
        return f"wish-{asked_ns:020d}-{'ex' if mode == fcntl.LOCK_EX else 'sh'}-{self._name}"

    def _wishes(self) -> Iterator[tuple[str, str, str]]:
        """Time, mode and owner of every living wish of others."""
        for path in self._living("wish-"):
            match = _WISH.fullmatch(path.name)
            if match is not None and match[3] != self._name:
                yield match[1], match[2], match[3]

    def _is_first(self, own: str) -> bool:
        return all(own < f"wish-{at}-{mode}-{name}" for at, mode, name in self._wishes())

    def _living(self, prefix: str) -> list[Path]:
        """The files of a kind whose owners live; those of the dead are removed."""
        return [path for path in self._folder.iterdir() if path.name.startswith(prefix) and not removed_if_dead(path)]


def _neighbour(entry: bytes) -> Neighbour:
    """What a server says of itself; one that has not said it yet needs nobody knows what."""
    try:
        values = json.loads(entry)
        service = str(values.pop("service"))
        return Neighbour(service, **{name: int(value) for name, value in values.items()})
    except (ValueError, TypeError, KeyError, AttributeError):
        return Neighbour("", 0, 0)
