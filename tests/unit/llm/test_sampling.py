"""One token from one row of logits."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from halfreel_llm.sampling import NOT_FINITE, SamplingSettings, _uniform, noise_key, pick

ALL = torch.ones(5, dtype=torch.bool)


class Drawing:
    """Draws at one place after another, as a reply does."""

    def __init__(self, *, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0, seed: int = 0) -> None:
        self.settings = SamplingSettings(temperature, top_p, top_k, seed)
        self.place = 0

    def pick(self, row: Tensor, allowed: Tensor) -> int:
        return self.many(row, allowed, 1)[0]

    def many(self, row: Tensor, allowed: Tensor, count: int) -> list[int]:
        """So many draws in one call: company changes none of them."""
        places = range(self.place + 1, self.place + count + 1)
        self.place += count
        return pick(row.expand(count, -1), [self.settings] * count, places, allowed[None])


sampler = Drawing


def logits_of(*probabilities: float) -> Tensor:
    return torch.tensor(probabilities).log()


def test_draws_follow_the_probabilities() -> None:
    drawing, row = sampler(), logits_of(0.5, 0.3, 0.15, 0.04, 0.01)
    counts = Counter(drawing.many(row, ALL, 5000))
    for token, probability in enumerate((0.5, 0.3, 0.15, 0.04, 0.01)):
        assert abs(counts[token] / 5000 - probability) < 0.03  # over four standard deviations


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"top_p": 0.79}, {0, 1}),
        ({"top_p": 0.81}, {0, 1, 2}),
        ({"top_p": 1e-9}, {0}),
        ({"top_k": 2}, {0, 1}),
        ({"top_k": 1000}, {0, 1, 2, 3, 4}),
        ({"top_k": 3, "top_p": 0.5}, {0}),
        ({"temperature": 1e-30}, {0}),
        ({"temperature": 0.0}, {0}),
    ],
)
def test_top_p_and_top_k_keep_the_likeliest(settings: dict[str, float], kept: set[int]) -> None:
    drawing, row = sampler(**settings), logits_of(0.5, 0.3, 0.1, 0.06, 0.04)  # type: ignore[arg-type]
    assert set(drawing.many(row, ALL, 1500)) == kept


def test_temperature_flattens() -> None:
    row = logits_of(0.9, 0.1, 0.0, 0.0, 0.0).clamp_min(-1e30)
    cold, hot = sampler(temperature=0.5), sampler(temperature=2.0)
    share = [Counter(each.many(row, ALL, 2000))[1] / 2000 for each in (cold, hot)]
    assert share[0] < 0.04 < 0.2 < share[1]  # 0.012 and 0.25


def test_only_allowed_tokens_are_picked() -> None:
    allowed = torch.tensor([False, False, True, False, True])
    drawing, row = sampler(temperature=2.0), logits_of(0.9, 0.05, 0.02, 0.02, 0.01)
    assert set(drawing.many(row, allowed, 300)) == {2, 4}
    assert sampler(temperature=0).pick(row, allowed) == 2
    one = torch.tensor([False, False, False, False, True])
    assert set(drawing.many(row, one, 50)) == {4}


def test_the_seed_decides() -> None:
    row = torch.zeros(5)
    one, same, other = (each.many(row, ALL, 40) for each in (sampler(), sampler(), sampler(seed=1)))
    assert one == same != other
    assert sampler(seed=2**63 - 1).pick(row, ALL) in range(5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_numbers_that_are_not_finite_are_told_of_their_row_alone(bad: float, temperature: float) -> None:
    rows = torch.tensor([[0.0, bad, 0.0, 0.0, 0.0], [0.0, 9.0, 0.0, 0.0, 0.0]])
    settings = [SamplingSettings(temperature, 1.0, 0, 1)] * 2
    first, second = pick(rows, settings, [0, 0], ALL[None])
    assert first == NOT_FINITE
    assert second in range(5)


def test_half_precision_rows_are_summed_in_full() -> None:
    row = torch.full((5,), 60000.0, dtype=torch.float16)  # their sum is past the range of FP16
    assert sampler().pick(row, ALL) in range(5)


def test_company_changes_no_draw() -> None:
    rows = torch.randn(40, 200, generator=torch.Generator().manual_seed(1))
    everything = torch.ones(1, 200, dtype=torch.bool)
    settings = [
        SamplingSettings(
            [0.0, 0.7, 1.5][number % 3], [1.0, 0.9, 0.3][number % 7 % 3], [0, 5, 1][number % 5 % 3], number
        )
        for number in range(40)
    ]
    places = list(range(0, 400, 10))
    together = pick(rows, settings, places, everything)
    alone = [
        pick(rows[number : number + 1], [settings[number]], [places[number]], everything)[0] for number in range(40)
    ]
    assert together == alone


def test_equals_at_the_cut_are_all_kept() -> None:
    row = logits_of(0.4, 0.2, 0.2, 0.1, 0.1)
    drawing = sampler(top_k=2)
    assert set(drawing.many(row, ALL, 300)) == {0, 1, 2}


def test_the_number_of_a_draw_is_neither_0_nor_1() -> None:
    numbers = _uniform(torch.tensor([0, 2**9 - 1, 2**31, 2**32 - 2**9, 2**32 - 1]))
    assert ((numbers > 0) & (numbers < 1)).all()
    assert (-(-numbers.log()).log()).isfinite().all()  # an infinite one would win over every token that is allowed


def test_noise_keys_are_those_of_splitmix64() -> None:
    assert noise_key(1234567, 0) == 6457827717110365317  # the generator's published first outputs for this seed
    assert noise_key(1234567, 1) == 3203168211198807973
