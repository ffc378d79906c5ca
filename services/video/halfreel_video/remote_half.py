"""One half of guidance of one clip, predicted by a replica while this device predicts the other.

Gives the same bytes as this device would, so that a replica that fails costs time alone. Knows nothing of schedulers.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

import torch

from halfreel_runtime.errors import HalfreelError
from halfreel_video.predictor import Conditioning, Predictor
from halfreel_video.replica import Replica


class RemoteHalf:
    """One half of guidance of one clip, predicted by a replica."""

    def __init__(self, replica: Replica, conditioning: Conditioning, halves: slice, trades: Sequence[str]) -> None:
        """Takes the conditioning on whichever device it is."""
        self.replica = replica
        self._halves = halves
        self._conditioning = conditioning
        self._trades = trades
        self._predictor: Predictor | None = None
        self._pending: Future[torch.Tensor] | None = None

    def start(self, scaled: torch.Tensor, timestep: torch.Tensor, index: int) -> None:
        """Begins a step's half; call it before the other half is begun, and `finish` after.

        The copy to the replica's device waits for all that both devices were told before, and later work for the copy.
        """
        far, halves = self.replica.device, self._halves
        try:
            if self._predictor is None:
                self._predictor = Predictor(self.replica.unet, self._conditioning.to(far), self._trades)
            predictor = self._predictor
            given = scaled.to(far, non_blocking=True), timestep.to(far, non_blocking=True)
        except Exception as error:
            self.replica.give_up(error)
            return
        self._pending = self.replica.start(lambda: predictor.predict(*given, halves, index))

    def wait(self) -> BaseException | None:
        """Waits until the replica's device was told all, so that its thread is free; gives what it failed by."""
        return self._pending.exception() if self._pending is not None else None

    def finish(self, device: torch.device) -> torch.Tensor | None:
        """The half that was started, on a device; None where the replica failed.

        Raises:
            HalfreelError: whatever ended the clip in the replica's thread too, such as Cancelled.
        """
        failure = self.wait()
        pending, self._pending = self._pending, None
        if isinstance(failure, HalfreelError):
            raise failure
        try:
            if failure is not None:
                raise failure
            return None if pending is None else pending.result().to(device, non_blocking=True)
        except Exception as error:
            self.replica.give_up(error)
            return None
