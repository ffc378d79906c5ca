"""Which slot a prompt goes to."""

from __future__ import annotations

from halfreel_llm.prefixes import Prefixes

LONG = tuple(range(100))


def test_a_prompt_goes_where_its_beginning_lies() -> None:
    prefixes = Prefixes(3, 10)
    assert prefixes.choose(LONG, set()) == (0, 0, 0)
    prefixes.keep(0, LONG)
    assert prefixes.choose((*LONG[:57], 999, 998), set()) == (0, 0, 50)  # whole pieces alone


def test_a_beginning_is_copied_from_a_slot_that_is_taken() -> None:
    prefixes = Prefixes(3, 10)
    prefixes.choose(LONG, set())
    prefixes.keep(0, LONG)
    assert prefixes.choose((*LONG, 7), {0}) == (0, 1, 100)


def test_what_is_not_read_yet_is_not_reused() -> None:
    prefixes = Prefixes(2, 10)
    prefixes.choose(LONG, set())
    assert prefixes.choose(LONG, {0}) == (1, 1, 0)


def test_the_last_token_of_a_prompt_is_always_read() -> None:
    prefixes = Prefixes(1, 10)
    prefixes.choose(LONG, set())
    prefixes.keep(0, LONG)
    assert prefixes.choose(LONG, set())[2] == 90


def test_the_slot_that_was_left_longest_ago_is_given_away() -> None:
    prefixes = Prefixes(3, 1)
    for first in (1000, 2000, 3000):
        _, slot, _ = prefixes.choose((first, 1), set())
        prefixes.keep(slot, (first, 1))
    prefixes.keep(0, (1000, 1))
    assert prefixes.choose((4000, 1), set())[1] == 1
    prefixes.forget(2)
    assert prefixes.choose((5000, 1), {1})[1] == 2
