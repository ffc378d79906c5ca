"""The replies that are written at once: they join and leave between any two steps, each in a slot of its own.

A step runs the tokens picked last, reads a piece of one prompt, and picks the next tokens. Knows no gRPC and no queue,
and no device: a `Runner` does the arithmetic.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterable, Iterator
from typing import Any

from halfreel_llm.place import Place, Reader
from halfreel_llm.prefixes import Prefixes
from halfreel_llm.reply import Reply, TextDelta, TextRequest
from halfreel_llm.runner import GuessChecker, Runner
from halfreel_llm.sampling import NOT_FINITE, not_finite
from halfreel_llm.tokenizer import TextTokenizer
from halfreel_runtime.cancel import CancelToken
from halfreel_runtime.errors import FatalError, HalfreelError
from halfreel_runtime.failures import engine_error, release_frames
from halfreel_runtime.memory import MemoryMonitor

# A message costs the event loop some 100 us whatever it holds: so many replies may each send one so often that the loop
# has half its time for others. Text that comes sooner waits for the next.
_MESSAGE_S = 200e-6
# Tokens that a grammar leaves no choice of are read in a step of their own, which costs the others its time: alone it
# always pays, in company from so many on.
_FORCED_IN_COMPANY = 4


class Batch:
    """The running replies of one model."""

    def __init__(self, runner: Runner, tokenizer: TextTokenizer, vocabulary_size: int, memory: MemoryMonitor) -> None:
        """Takes who runs the network, and what its tokens mean."""
        self._runner = runner
        self._checker = runner if isinstance(runner, GuessChecker) else None
        self._tokenizer = tokenizer
        self._vocabulary_size = vocabulary_size
        self._memory = memory
        self._places: dict[int, Place] = {}
        self._prefixes = Prefixes(runner.slot_count, runner.reuse_tokens)
        self._pending: list[tuple[Any, list[Place | None]]] = []
        self._phase: tuple[str, contextlib.ExitStack] | None = None
        self._step_count = 0

    @property
    def slot_count(self) -> int:
        """Replies that can be written at once."""
        return self._runner.slot_count

    @property
    def running_count(self) -> int:
        """Replies that are written now."""
        return len(self._places)

    def forget(self) -> None:
        """Nothing that slots hold can be reused any more; call it between two sessions."""
        for slot in range(self._runner.slot_count):
            self._prefixes.forget(slot)

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """Around a time in which replies are written; whoever is not done at its end is forgotten."""
        try:
            yield
        finally:
            self._enter(None)
            self._pending.clear()
            for place in self._places.values():
                place.memory.end()
            self._places.clear()

    def admit(self, request: TextRequest, reader: Reader) -> None:
        """Gives a slot to a request; one must be free. Where that fails, its reader hears of it, and nobody else.

        Raises:
            FatalError: The process is lost.
        """
        source, slot, token_count = self._prefixes.choose(request.prompt_ids, set(self._places))
        memory = self._memory.begin_request(request.request_id)
        memory.predict(request.predicted_bytes)
        try:
            place = Place(request, reader, Reply(request, self._tokenizer), slot, memory)
            self._runner.begin(slot, request.sampling)
            self._runner.reuse(source, slot, token_count)
        except Exception as error:
            memory.end()
            self._prefixes.forget(slot)
            self._raise_if_fatal(error)
            reader.end(None, error)
            return
        place.held = place.reply.cached_prompt_count = token_count
        self._places[slot] = place

    def step(self) -> None:
        """Moves every reply on by a token, or by a piece of its prompt.

        Raises:
            BaseException: What ends the process (`FatalError` or no `Exception`); all else ends single replies.
        """
        for place in list(self._places.values()):
            if place.reader.token.cancelled:
                self._fail(place, _cancelled(place.reader.token))
        read: Iterable[tuple[Any, Place]] = ()  # run no sooner than what was written has been picked from
        if self._runner.overlaps:  # the device works on while the host hears of the last step
            writing = self._writing()
            prompts = [place for place in self._places.values() if place.reading and not place.forced_only]
            piece, last = self._piece(prompts[0]) if writing and prompts else ([], False)
            if piece and self._runner.mixes(len(writing), len(piece)):
                parts, read = self._write_and_read(writing, prompts[0], piece, last=last)
                prompts = []
            else:
                parts = self._write(writing)
            self._collect()
        else:
            writing = self._writing()
            guessed = len(writing) == 1 and self._guess(writing[0])
            parts = self._write([] if guessed else writing)
            prompts = [place for place in self._places.values() if place.reading and not place.forced_only]
        for logits, places in parts:
            # A reply that ended, or was forced on, while its step was under way has no use for what comes of it.
            self._pick(logits, places, [None if place.ended or place.reading else place for place in places])
        forced = [place for place in self._places.values() if place.reading and place.forced_only]
        for logits, place in itertools.chain(read, self._read([*forced, *prompts[:1]])):
            self._pick(logits, [place], [place])
        if not self._runner.overlaps:  # what was picked is there: its text need not wait for another step
            self._collect()
        self._hand_over()

    # The parts of a step.

    def _pick(self, logits: Any, places: list[Place], wanting: list[Place | None]) -> None:
        """Has the next tokens picked, each reply's by its own mask; one whose mask fails ends without the others."""
        masks = {}
        for place in wanting:
            if place is None or place.request.matcher is None:
                continue
            try:
                mask = place.mask(self._vocabulary_size)
            except Exception as error:
                self._fail(place, error)
                continue
            if mask is not None:
                masks[place.slot] = mask
        try:
            picked = self._runner.pick(logits, [place.slot for place in places], masks)
        except Exception as error:
            for each in filter(None, wanting):
                self._fail(each, error)
            return
        for each in filter(None, wanting):
            each.open_picks += 1
        self._pending.append((picked, wanting))

    def _writing(self) -> list[Place]:
        """Returns the replies whose last picked token is to be run, by slot."""
        return [
            place
            for _, place in sorted(self._places.items())
            if not place.reading and place.reply.token_count + place.open_picks < place.request.max_output_tokens
        ]

    def _write(self, places: list[Place]) -> list[tuple[Any, list[Place]]]:
        """Runs the picked tokens; where that fails for many, for fewer at a time."""
        if not places:
            return []
        self._enter("decode")
        try:
            logits = self._runner.write([place.slot for place in places])
        except Exception as error:
            if len(places) == 1:
                self._fail(places[0], error)
                return []
            self._raise_if_fatal(error)
            for place in places:
                place.rungs.append("smaller_batch")
            half = len(places) // 2
            first = [(self._runner.kept(logits), some) for logits, some in self._write(places[:half])]
            return first + self._write(places[half:])
        for place in places:
            place.held += 1
        return [(logits, places)]

    def _guess(self, place: Place) -> bool:
        """Runs what a reply may go on with together with its last token; returns whether there was such a guess.

        What is taken is what the model picks: the guessed tokens as far as it picks the same, and one more.
        """
        checker, reply = self._checker, place.reply
        if checker is None:
            return False
        try:
            guess, masks = place.guess(self._vocabulary_size)
            if not guess:
                return False
            self._enter("decode")
            picked = checker.check(place.slot, [place.token_ids[-1], *guess], place.held, masks)
        except Exception as error:
            self._fail(place, error)
            return True
        right = next((index for index, token_id in enumerate(guess) if picked[index] != token_id), len(guess))
        place.lookup.learn(len(guess), right)
        place.held += 1 + right
        checker.settle(place.slot, place.held, picked[right])
        for index, token_id in enumerate(picked[: right + 1]):
            if place.ended:
                break
            reply.speculated_count += index < right
            self._take(place, token_id, last=index == right)
        return True

    def _read(self, places: list[Place]) -> Iterator[tuple[Any, Place]]:
        """Reads what grammars forced, and a piece of a prompt; yields the replies of which nothing is left to read."""
        for place in places:
            if place.ended:
                continue
            piece, last = self._piece(place)
            self._enter("decode" if place.forced_only else "prefill")
            began_s = time.monotonic()
            try:
                logits = self._runner.read(place.slot, piece, place.held, last=last)
            except Exception as error:
                self._fail(place, error)
                continue
            self._has_read(place, len(piece), time.monotonic() - began_s)
            if last:
                yield logits, place

    def _write_and_read(
        self, writing: list[Place], place: Place, piece: list[int], *, last: bool
    ) -> tuple[list[tuple[Any, list[Place]]], Iterable[tuple[Any, Place]]]:
        """Runs the picked tokens together with a piece of a prompt; where that fails, one after the other.

        The other is then run only when it is asked for: it may write over the logits of the first.
        """
        self._enter("prefill")
        began_s = time.monotonic()
        try:
            rows, logits = self._runner.both([each.slot for each in writing], place.slot, piece, place.held, last=last)
        except Exception as error:
            self._raise_if_fatal(error)
            place.rungs.append("smaller_batch")
            return self._write(writing), self._read([place])
        self._has_read(place, len(piece), time.monotonic() - began_s)
        for each in writing:
            each.held += 1
        return [(rows, writing)], [(logits, place)] if last else []

    def _piece(self, place: Place) -> tuple[list[int], bool]:
        """Returns the next tokens to read, and whether they are the last."""
        prompts = sum(1 for each in self._places.values() if each.reading)
        end = place.held + self._runner.piece_tokens(alone=len(self._places) == 1, prompts=prompts)
        return place.token_ids[place.held : end], end >= len(place.token_ids)

    def _has_read(self, place: Place, token_count: int, seconds: float) -> None:
        place.prefill_s += seconds
        place.held += token_count
        if place.held == len(place.token_ids):
            place.reading = False
            self._prefixes.keep(place.slot, place.token_ids)

    def _collect(self) -> None:
        """Hears which tokens were picked in the last step."""
        pending, self._pending = self._pending, []
        for picked, places in pending:
            for place, token_id in zip(places, self._runner.wait(picked), strict=True):
                if place and not place.ended:
                    place.open_picks -= 1
                    self._take(place, token_id)

    def _take(self, place: Place, token_id: int, *, last: bool = True) -> None:
        if token_id == NOT_FINITE:
            self._fail(place, not_finite())
            self._runner.clear(place.slot)
            self._prefixes.forget(place.slot)
            return
        place.token_ids.append(token_id)
        try:
            place.reply.push(token_id)
            if last and place.reply.reason is None and place.request.matcher is not None:
                self._force(place)
        except Exception as error:
            self._fail(place, error)
            return
        if place.reply.reason is not None:
            self._finish(place)

    def _force(self, place: Place) -> None:
        """Takes the tokens that the grammar leaves no choice of."""
        matcher, reply = place.request.matcher, place.reply
        assert matcher is not None
        forced = matcher.compute_ff_tokens()[: place.request.max_output_tokens - reply.token_count]
        if len(forced) < (1 if len(self._places) == 1 else _FORCED_IN_COMPANY):
            return
        for token_id in forced:
            if reply.reason is not None:
                return
            reply.push(token_id)
            reply.forced_count += 1
            place.token_ids.append(token_id)
        place.reading = True

    def _hand_over(self) -> None:
        """Gives the readers their text, the more replies the less often."""
        now = time.monotonic()
        then = now + (len(self._places) - 1) * _MESSAGE_S
        for place in list(self._places.values()):
            if now >= place.next_message_s and (delta := place.reply.take()) is not None:
                place.next_message_s = then
                self._put(place, delta)

    # Ends.

    def _put(self, place: Place, delta: TextDelta) -> bool:
        try:
            place.reader.put(delta)
        except HalfreelError as error:  # nobody reads
            self._fail(place, error)
            return False
        return True

    def _finish(self, place: Place) -> None:
        delta = place.reply.take()
        if delta is not None and not self._put(place, delta):
            return
        self._leave(place)
        place.reader.end(place.reply.finished(place.peaks(), tuple(dict.fromkeys(place.rungs))), None)

    def _fail(self, place: Place, error: BaseException) -> None:
        self._raise_if_fatal(error)
        if place.ended:
            return
        self._leave(place)
        place.reader.end(None, error)

    def _leave(self, place: Place) -> None:
        place.ended = True
        del self._places[place.slot]
        if not self._places:  # a phase that went on without a reply would be of none
            self._enter(None)
        place.memory.end()
        self._prefixes.keep(place.slot, place.token_ids[: place.held])

    def _raise_if_fatal(self, error: BaseException) -> None:
        release_frames(error)
        known = engine_error(error)
        if isinstance(known, FatalError):
            raise known from error

    def _enter(self, phase: str | None) -> None:
        """Goes on in a phase; the one before it ends where it is another."""
        if self._phase is not None:
            if self._phase[0] == phase:
                return
            self._phase[1].close()
            self._phase = None
        if phase is not None:
            stack = contextlib.ExitStack()
            stack.enter_context(self._memory.phase(phase))
            self._phase = (phase, stack)


def _cancelled(token: CancelToken) -> BaseException:
    try:
        token.raise_if_cancelled()
    except HalfreelError as error:
        return error
    raise AssertionError("the token was cancelled")
