"""What a batch asks of whatever runs the network: on a CPU at once, on a GPU behind the host's back.

Knows no reply.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from halfreel_llm.sampling import SamplingSettings

Mask: TypeAlias = NDArray[np.int32]
"""A row of llguidance's mask: one bit a token, 32 to a word."""


class Runner(Protocol):
    """Runs the network for slots, each of which remembers how much it holds and the token picked last.

    What `read`, `write` and `both` return is for `pick`, before the next of these three, which may write over it;
    what `pick` returns is for `wait`.
    """

    overlaps: bool
    """Whether work goes on after a method returned, so that it pays to have some under way before waiting."""
    slot_count: int
    reuse_tokens: int
    """What another slot holds is reused in whole pieces of so many tokens."""

    def piece_tokens(self, *, alone: bool, prompts: int) -> int:
        """Returns how many tokens of a prompt to read in one step.

        Args:
            alone: Whether nobody else is there.
            prompts: That wait to be read.
        """

    def mixes(self, row_count: int, token_count: int) -> bool:
        """Returns whether `both` of so many slots and tokens costs less than `write` and `read`."""

    def begin(self, slot: int, sampling: SamplingSettings) -> None:
        """Gives a slot to a new reply."""

    def reuse(self, source: int, slot: int, token_count: int) -> None:
        """Lets a slot begin with what another, or it itself, holds of an equal beginning."""

    def read(self, slot: int, token_ids: Sequence[int], begin: int, *, last: bool) -> Any:
        """Reads tokens into a slot that holds `begin`; returns logits after them where they are the last."""

    def write(self, slots: list[int]) -> Any:
        """Runs the tokens picked last, of slots in rising order; returns the logits after them."""

    def both(self, slots: list[int], slot: int, token_ids: Sequence[int], begin: int, *, last: bool) -> tuple[Any, Any]:
        """Does what `write` and `read` do, in one step."""

    def kept(self, logits: Any) -> Any:
        """Returns logits that the next `read`, `write` or `both` leaves as they are."""

    def pick(self, logits: Any, slots: list[int], masks: Mapping[int, Mask]) -> Any:
        """Picks the next token of each slot; `masks` are of the slots under a grammar."""

    def wait(self, picked: Any) -> list[int]:
        """Returns the tokens picked; `NOT_FINITE` for a row that was not."""

    def clear(self, slot: int) -> None:
        """Forgets numbers that are not finite."""


@runtime_checkable
class GuessChecker(Protocol):
    """What prompt lookup needs of a runner on top: only one that is done when its method returns can have it.

    Where the device works behind the host's back, a guess would have to wait for it, which costs what it might save.
    """

    def check(self, slot: int, token_ids: Sequence[int], begin: int, masks: Sequence[Mask | None]) -> list[int]:
        """Runs tokens in a slot that holds `begin`, and returns what is picked after each of them.

        A mask belongs to each, None where there is no grammar. The slot is then to be told by `settle` how many of
        them were right.
        """

    def settle(self, slot: int, length: int, picked: int) -> None:
        """Lets a slot hold so many tokens, and have picked this one last."""
