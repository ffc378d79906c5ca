"""Stop strings: nothing of one is ever shown, however the text is cut."""

from __future__ import annotations

import random

import pytest

from halfreel_llm.stop_strings import StopStrings


def shown(strings: list[str], parts: list[str]) -> tuple[str, bool]:
    stop = StopStrings(strings)
    text = ""
    for part in parts:
        text += stop.push(part)
        if stop.met:
            return text, True
    return text + stop.flush(), False


@pytest.mark.parametrize(
    ("strings", "parts", "expected"),
    [
        (["END"], ["a", "E", "N", "D", "b"], ("a", True)),
        (["END"], ["aEND", "b"], ("a", True)),
        (["END"], ["E", "N", "X"], ("ENX", False)),
        (["END"], ["E", "EN", "END"], ("EEN", True)),
        (["END"], ["EN"], ("EN", False)),
        (["aab"], ["a", "a", "a", "b"], ("a", True)),
        (["b", "abc"], ["a", "b", "c"], ("a", True)),  # the one that is complete first
        (["\n\n", "旁白"], ["x旁", "白y"], ("x", True)),
        ([], ["a", "", "b"], ("ab", False)),
    ],
)
def test_text_ends_before_a_stop_string(strings: list[str], parts: list[str], expected: tuple[str, bool]) -> None:
    assert shown(strings, parts) == expected


def test_any_cut_of_the_text_shows_the_same() -> None:
    for seed in range(2000):
        rng = random.Random(seed)
        text = "".join(rng.choice("ab") for _ in range(rng.randint(0, 14)))
        strings = ["".join(rng.choice("ab") for _ in range(rng.randint(1, 4))) for _ in range(rng.randint(0, 3))]
        parts = []
        rest = text
        while rest:
            size = rng.randint(1, 4)
            parts.append(rest[:size])
            rest = rest[size:]
        ends = [(text.find(string) + len(string), text.find(string)) for string in strings if string in text]
        expected = (text[: min(ends)[1]], True) if ends else (text, False)
        assert shown(strings, parts) == expected, (strings, parts)


def test_no_more_is_held_back_than_could_begin_a_stop_string() -> None:
    stop = StopStrings(["STOP", "###"])
    assert [stop.push(part) for part in ("go S", "T", "A", "#", "#x")] == ["go ", "", "STA", "", "##x"]
