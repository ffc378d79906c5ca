"""Which slot a prompt goes to, so that a beginning that was read before is not read again.

A slot keeps what it held when its reply has left, until it is given away; so the last prompts' beginnings are at hand
without memory of their own. Knows tokens alone, and no model.
"""

from __future__ import annotations

from collections.abc import Sequence


class Prefixes:
    """What the slots hold."""

    def __init__(self, slot_count: int, piece_tokens: int) -> None:
        """Takes the slots, and how many tokens are read at once.

        Only whole pieces are reused, and the rest of a prompt is read in the very pieces it would have been read in
        without: so that reuse changes no number of it.
        """
        self._held: list[tuple[int, ...]] = [()] * slot_count
        self._used = [0] * slot_count
        self._clock = 0
        self._piece_tokens = piece_tokens

    def choose(self, prompt_ids: tuple[int, ...], taken: set[int]) -> tuple[int, int, int]:
        """Chooses a free slot for a prompt, and the slot to copy from.

        Args:
            prompt_ids: The prompt.
            taken: The slots of running replies; not all.

        Returns:
            The slot with the longest equal beginning, the slot to use, and the tokens that can be reused. The two are
            the same where the slot itself holds them.
        """
        common = [self._common(held, prompt_ids) for held in self._held]
        source = max(range(len(common)), key=lambda slot: (common[slot], slot not in taken, -slot))
        free = [slot for slot in range(len(self._held)) if slot not in taken]
        # One that holds nothing, or else the one that was left longest ago.
        oldest = min(free, key=lambda each: (self._used[each], each))
        slot = source if source in free and common[source] else oldest
        self._clock += 1
        self._used[slot] = self._clock
        token_count = common[source]
        self._held[slot] = tuple(prompt_ids[:token_count])  # the rest is not read yet
        return (source, slot, token_count) if token_count else (slot, slot, 0)

    def keep(self, slot: int, token_ids: Sequence[int]) -> None:
        """Notes what a slot holds now that its reply has left it."""
        self._clock += 1
        self._used[slot] = self._clock
        self._held[slot] = tuple(token_ids)

    def forget(self, slot: int) -> None:
        """Notes that a slot holds nothing that can be used."""
        self._held[slot], self._used[slot] = (), 0

    def _common(self, held: tuple[int, ...], prompt_ids: tuple[int, ...]) -> int:
        """Returns the whole pieces of an equal beginning; the prompt's last token is always read, for its logits."""
        most = min(len(held), len(prompt_ids) - 1)
        piece = self._piece_tokens
        if most < piece or held[:piece] != prompt_ids[:piece]:  # nearly all: hundreds of slots are looked at
            return 0
        same = next((index for index in range(most) if held[index] != prompt_ids[index]), most)
        return same - same % self._piece_tokens
