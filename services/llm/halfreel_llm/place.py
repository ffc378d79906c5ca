"""A reply in its slot, and who waits for it. Does not know how replies are written together."""

from __future__ import annotations

from typing import Protocol

from halfreel_llm.lookup import Lookup
from halfreel_llm.reply import Finished, Reply, TextDelta, TextRequest
from halfreel_runtime.cancel import CancelToken


class Reader(Protocol):
    """Who waits for a reply."""

    token: CancelToken

    def put(self, event: TextDelta) -> None:
        """Takes text.

        Raises:
            SlowReader: Too much lies unread.
        """

    def end(self, finished: Finished | None, error: BaseException | None) -> None:
        """Hears the end: one of the two."""


class Place:
    """A reply in its slot."""

    def __init__(self, request: TextRequest, reader: Reader, reply: Reply, slot: int) -> None:
        self.request, self.reader, self.reply, self.slot = request, reader, reply, slot
        self.token_ids = list(request.prompt_ids)
        """The prompt and what was picked; the slot holds the first `held` of them."""
        self.held = 0
        self.reading = True
        """Whether tokens wait to be read, before more can be picked."""
        self.open_picks = 0
        self.rungs: list[str] = []
        self.lookup = Lookup()
        self.prefill_s = 0.0
        self.next_message_s = 0.0
        self.ended = False

    @property
    def forced_only(self) -> bool:
        """Whether what waits to be read is of the reply and not of the prompt."""
        return self.held >= len(self.request.prompt_ids)
