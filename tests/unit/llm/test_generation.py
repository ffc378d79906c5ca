"""Writing a reply: the tokens, their text, and when it ends."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import tiny_llm
import torch
from torch import Tensor

from halfreel_llm.checkpoint import Checkpoint
from halfreel_llm.generation import Finished, FinishReason, TextDelta, TextModel, TextRequest
from halfreel_llm.messages import Message
from halfreel_llm.network import Network
from halfreel_llm.sampling import SamplingSettings
from halfreel_llm.tokenizer import TextTokenizer
from halfreel_llm.weights import load_model
from halfreel_runtime.cancel import CancelToken
from halfreel_runtime.errors import Cancelled, Internal


@pytest.fixture
def request_(tokenizer: TextTokenizer) -> TextRequest:
    prompt = tokenizer.encode_chat([Message("user", "a red circle moves over a blue sky")])
    return TextRequest("r-1", tuple(prompt), 40, SamplingSettings(temperature=1.0, top_p=1.0, top_k=0, seed=7))


def sampled(request: TextRequest, **changes: Any) -> TextRequest:
    return dataclasses.replace(request, sampling=dataclasses.replace(request.sampling, **changes))


def written(model: TextModel, request: TextRequest) -> tuple[str, Finished]:
    *deltas, finished = model.generate(request, CancelToken())
    assert isinstance(finished, Finished)
    assert all(isinstance(delta, TextDelta) and delta.text for delta in deltas)
    return "".join(delta.text for delta in deltas if isinstance(delta, TextDelta)), finished


def test_greedy_tokens_are_those_of_transformers_generate(
    checkpoint: Checkpoint, tokenizer: TextTokenizer, text_model: TextModel, request_: TextRequest
) -> None:
    model = load_model(checkpoint, device=torch.device("cpu"), dtype=torch.float32)
    never = sorted(set(range(tiny_llm.VOCABULARY_SIZE)) - tokenizer.text_ids - tokenizer.stop_ids)
    output = model.generate(
        torch.tensor([request_.prompt_ids]),
        max_new_tokens=40,
        do_sample=False,
        suppress_tokens=never,
        eos_token_id=sorted(tokenizer.stop_ids),
    )
    stream, expected = tokenizer.stream(), ""
    for token_id in output[0, len(request_.prompt_ids) :].tolist():
        expected += "" if token_id in tokenizer.stop_ids else stream.push(token_id)
    assert written(text_model, sampled(request_, temperature=0.0))[0] == expected
    assert len(expected) > 20


def test_the_seed_decides_the_text(text_model: TextModel, request_: TextRequest) -> None:
    once, again = written(text_model, request_)[0], written(text_model, request_)[0]
    assert once == again
    assert once != written(text_model, sampled(request_, seed=8))[0]


def test_a_prompt_in_pieces_gives_the_same_text(
    text_model: TextModel, request_: TextRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = written(text_model, request_)[0]
    monkeypatch.setattr(text_model.runner, "piece_tokens", lambda **_: 4)
    assert len(request_.prompt_ids) > 12
    assert written(text_model, request_)[0] == whole


def test_the_length_limit_ends_a_reply(text_model: TextModel, request_: TextRequest) -> None:
    text, finished = written(text_model, dataclasses.replace(request_, max_output_tokens=5))
    assert finished.reason is FinishReason.LENGTH
    assert finished.output_token_count == 5
    assert text


def test_deltas_account_for_every_token(text_model: TextModel, request_: TextRequest) -> None:
    *deltas, finished = text_model.generate(request_, CancelToken())
    assert isinstance(finished, Finished)
    assert 0 < sum(delta.token_count for delta in deltas if isinstance(delta, TextDelta)) <= finished.output_token_count
    assert finished.started_s <= finished.first_token_s <= finished.last_token_s


def test_what_the_plan_predicted_stands_beside_what_was_measured(text_model: TextModel, request_: TextRequest) -> None:
    request = dataclasses.replace(request_, max_output_tokens=3, predicted_bytes={"prefill": 41, "decode": 43})
    _, finished = written(text_model, request)
    assert {each.phase: each.predicted_reserved_bytes for each in finished.phase_peaks} == {"prefill": 41, "decode": 43}


class Script:
    """A network that wants to write the given tokens, one after another."""

    def __init__(self, network: Network, token_ids: list[int]) -> None:
        self._forward, self._logits = network.forward, network.logits
        self._token_ids = iter(token_ids)
        self.steps = 0

    def forward(self, token_ids: Tensor, rows: Any) -> Tensor:
        self.steps += 1
        return self._forward(token_ids, rows)

    def logits(self, hidden: Tensor) -> Tensor:
        logits = self._logits(hidden)
        logits[..., next(self._token_ids)] += 1e6
        return logits


@pytest.fixture
def scripted(checkpoint: Checkpoint, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch) -> Any:
    def script(token_ids: list[int]) -> tuple[TextModel, Script]:
        model = tiny_llm.text_model(checkpoint, tokenizer)
        network = Script(model.network, token_ids)
        monkeypatch.setattr(model.network, "forward", network.forward)
        monkeypatch.setattr(model.network, "logits", network.logits)
        return model, network

    return script


def pieces_of(tokenizer: TextTokenizer, text: str) -> list[int]:
    chat = tokenizer.encode_chat([Message("user", text)])
    return chat[5:-1]  # without [gMASK] sop <|user|>, the line break's two pieces, and <|assistant|>


@pytest.mark.parametrize("stop_id", [2, 1006, 1008])
def test_a_stop_token_ends_a_reply_and_is_not_counted(
    scripted: Any, tokenizer: TextTokenizer, request_: TextRequest, stop_id: int
) -> None:
    ids = pieces_of(tokenizer, "a red star")
    model, network = scripted([*ids, stop_id])
    text, finished = written(model, request_)
    assert text == "a red star"
    assert finished.reason is FinishReason.END_OF_TEXT
    assert finished.output_token_count == len(ids)
    assert network.steps == len(ids) + 1


def test_tokens_that_are_no_text_are_never_picked(scripted: Any, request_: TextRequest) -> None:
    model, _ = scripted([0, 1, 1000, 1007, 1023] * 8)  # <unk>, <s>, [MASK], <|assistant|>, padding
    text, finished = written(model, sampled(request_, temperature=0.0))
    assert finished.output_token_count == 40
    assert "<" not in text


def test_a_stop_string_ends_a_reply_before_it(scripted: Any, tokenizer: TextTokenizer, request_: TextRequest) -> None:
    model, network = scripted(pieces_of(tokenizer, "the moon rises STOP and more of it 你好"))
    text, finished = written(model, dataclasses.replace(request_, stop=("never", "STOP")))
    assert text == "the moon rises "
    assert finished.reason is FinishReason.STOP_STRING
    assert network.steps < 25


def test_text_held_back_for_a_stop_string_comes_at_the_end(
    scripted: Any, tokenizer: TextTokenizer, request_: TextRequest
) -> None:
    model, _ = scripted([*pieces_of(tokenizer, "so it rises STO"), 2])
    assert written(model, dataclasses.replace(request_, stop=("STOP",)))[0] == "so it rises STO"


def test_a_character_cut_by_the_limit_is_dropped(
    scripted: Any, tokenizer: TextTokenizer, request_: TextRequest
) -> None:
    ids = pieces_of(tokenizer, "ab🎬")
    model, _ = scripted(ids)
    text, finished = written(model, dataclasses.replace(request_, max_output_tokens=len(ids) - 1))
    assert text == "ab"
    assert finished.reason is FinishReason.LENGTH


def test_cancel_stops_within_one_token(scripted: Any, tokenizer: TextTokenizer, request_: TextRequest) -> None:
    model, network = scripted(pieces_of(tokenizer, "one small step and nobody saw how it ended"))
    cancel = CancelToken()
    events = model.generate(request_, cancel)
    next(events)
    steps = network.steps
    cancel.cancel()
    with pytest.raises(Cancelled):
        for _ in events:
            pass
    assert network.steps <= steps + 1


def test_cancel_stops_within_one_piece_of_the_prompt(
    scripted: Any, request_: TextRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, network = scripted([5] * 100)
    monkeypatch.setattr(model.runner, "piece_tokens", lambda **_: 4)
    assert len(request_.prompt_ids) > 12
    cancel = CancelToken()
    forward = model.network.forward

    def cancelled_meanwhile(*step: Any) -> Any:
        cancel.cancel()
        return forward(*step)

    monkeypatch.setattr(model.network, "forward", cancelled_meanwhile)
    with pytest.raises(Cancelled):
        next(model.generate(request_, cancel))
    assert network.steps == 1


def test_numbers_that_are_not_finite_fail_the_request_alone(
    checkpoint: Checkpoint, tokenizer: TextTokenizer, request_: TextRequest
) -> None:
    model = tiny_llm.text_model(checkpoint, tokenizer)
    layer = model.network.layers[0].query_key_value
    sound = layer.values
    layer.values = sound * float("inf")
    with pytest.raises(Internal, match="not finite"):
        written(model, request_)
    layer.values = sound
    assert written(model, request_)[0]


def test_phases_are_those_of_the_contract(text_model: TextModel, request_: TextRequest) -> None:
    _, finished = written(text_model, request_)
    assert [peak.phase for peak in finished.phase_peaks] == ["prefill", "decode"]
    assert all(peak.peak.allocated_bytes > 0 for peak in finished.phase_peaks)
    assert all(peak.duration.ToNanoseconds() > 0 for peak in finished.phase_peaks)
