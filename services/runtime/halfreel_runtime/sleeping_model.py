"""What a model must be able to do so that its server can give the device to another.

It does not know how the weights leave, nor who asked for it: `weights_host` moves those of torch modules, and the
`Sleeper` decides when.
"""

from __future__ import annotations

from typing import Protocol


class SleepingModel(Protocol):
    """A model whose weights can leave the device and come back; its methods are called in the engine's thread alone."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of the device that come free while it sleeps, at least."""

    def prepare_sleep(self) -> None:
        """Sleep is likely: whatever can be got ready for it beforehand is, without waiting for it."""

    def sleep(self) -> None:
        """Takes everything off the device. Nothing of the model may run from here until it is awake.

        Raises:
            Exception: the model is awake, as it was.
        """

    def wake(self) -> None:
        """Brings everything back, so that the model gives what it gave before, to the byte.

        Raises:
            Exception: such as torch's out-of-memory; the model sleeps, as it did, and may be woken again.
        """
