"""Guesses how a reply goes on: as it, or its prompt, went on after the same last tokens before.

Knows tokens alone; a guess is only ever taken where the model picks the same.
"""

from __future__ import annotations

from collections.abc import Sequence

# So many equal tokens make a guess worth its step, and so many are guessed at once: of 3, 4, 5 and 6 equal ones, 5 had
# the most right guesses in the pocket model's scripts (15 of 248 tokens), and 3 cost more than they saved.
_EQUAL_TOKENS = 5
_GUESSED_TOKENS = 4
# Guesses go on while at least every second one was right, with some credit to begin with.
_CREDIT = 4


class Lookup:
    """The guesses of one reply."""

    def __init__(self) -> None:
        """Knows nothing yet."""
        self._places: dict[tuple[int, ...], int] = {}
        self._indexed = 0
        self._guessed = self._right = 0

    def guess(self, token_ids: Sequence[int], most: int) -> list[int]:
        """Returns the tokens that followed the last ones before; none where they are new, or guessing does not pay.

        Args:
            token_ids: The prompt and the reply.
            most: Guess no more than this.
        """
        if most < 1 or 2 * self._right + _CREDIT < self._guessed:
            return []
        for end in range(max(self._indexed, _EQUAL_TOKENS), len(token_ids)):
            self._places[tuple(token_ids[end - _EQUAL_TOKENS : end])] = end
        self._indexed = len(token_ids)
        found = self._places.get(tuple(token_ids[-_EQUAL_TOKENS:]))
        if found is None:
            return []
        return list(token_ids[found : found + min(most, _GUESSED_TOKENS)])

    def learn(self, guessed: int, right: int) -> None:
        """Notes how many of the guessed tokens were right."""
        self._guessed += guessed
        self._right += right
