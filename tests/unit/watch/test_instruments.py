"""What a model server counts: there at zero from the start, bounded whatever it is told, tied to traces."""

from __future__ import annotations

import time
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from halfreel_runtime.instruments import RATIO_BUCKETS, Instruments
from halfreel_runtime.metrics import ServerMetrics
from halfreel_runtime.tracing import joined

TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"


def samples(registry: CollectorRegistry) -> dict[tuple[str, frozenset[tuple[str, str]]], Any]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample
        for family in text_string_to_metric_families(openmetrics(registry).decode())
        for sample in family.samples
    }


def value(registry: CollectorRegistry, name: str, **labels: str) -> float:
    return float(samples(registry)[(name, frozenset(labels.items()))].value)


@pytest.fixture(params=["llm", "video"])
def made(request: pytest.FixtureRequest) -> tuple[Instruments, CollectorRegistry]:
    instruments = Instruments(request.param, rungs=("decode_chunk", "smaller_batch"))
    return instruments, ServerMetrics(request.param, None, None, instruments).registry


def everything(instruments: Instruments, name: str) -> None:
    """Calls all that there is, by a name that somebody else chose."""
    for phase in ("decode", name):
        instruments.prediction(phase, 1000, 900)
        instruments.out_of_memory(phase, recovered=True)
        instruments.stage_took(phase, 1)
    instruments.rung(name)
    instruments.nan()
    instruments.admission(name)
    for count in (instruments.queued, instruments.cancelled, instruments.slept, instruments.woke):
        count(0.5)
    instruments.turn_waited(2)
    if instruments.service == "llm":
        instruments.reply(prompt_tokens=10, output_tokens=1, first_token_s=0.1, decode_s=0)
    else:
        instruments.step(0.1)
        instruments.clip(frame_count=0, clip_s=0, work_s=1)


def test_every_series_is_there_at_zero(made: tuple[Instruments, CollectorRegistry]) -> None:
    instruments, registry = made
    before = samples(registry)
    assert all(sample.value == 0 for (name, _), sample in before.items() if name != "halfreel_build_info")
    everything(instruments, "decode")
    new = samples(registry).keys() - before.keys()
    # "other" alone, which tells of a name that the lists lack: a rung and a verdict are never called "decode".
    assert {(name, *sorted(set(dict(labels)) - {"service"})) for name, labels in new} == {
        ("halfreel_admissions_total", "verdict"),
        ("halfreel_rungs_total", "rung"),
    }


def test_no_name_that_others_chose_makes_a_series(made: tuple[Instruments, CollectorRegistry]) -> None:
    instruments, registry = made
    everything(instruments, "first")
    count = len(samples(registry))
    for number in range(1000):
        everything(instruments, f"client-{number}")
    assert len(samples(registry)) == count
    assert "client-" not in str(samples(registry))


def test_what_was_predicted_is_held_against_what_was_measured() -> None:
    instruments = Instruments("video")
    instruments.prediction("decode", 1000, 1040)
    instruments.prediction("decode", 0, 1040)  # nothing was predicted
    at = {"service": "video", "phase": "decode"}
    registry = instruments.registry
    assert value(registry, "halfreel_memory_prediction_ratio_count", **at) == 1
    assert value(registry, "halfreel_memory_prediction_ratio_sum", **at) == pytest.approx(1.04)
    assert value(registry, "halfreel_memory_prediction_ratio_bucket", le="1.03", **at) == 0
    assert value(registry, "halfreel_memory_prediction_ratio_bucket", le="1.05", **at) == 1
    assert {0.95, 1.05} <= set(RATIO_BUCKETS)  # the bounds of the alert


def test_memory_that_runs_out_anywhere_is_at_zero_before() -> None:
    registry = Instruments("llm").registry
    for phase in ("prefill", "decode", "other"):
        labels = {"service": "llm", "phase": phase, "recovered": "false"}
        assert value(registry, "halfreel_out_of_memory_total", **labels) == 0  # else the first time is no increase


def test_a_stage_is_timed_unless_it_failed() -> None:
    instruments = Instruments("video")
    with instruments.stage("denoise"):
        time.sleep(0.02)
    with pytest.raises(RuntimeError), instruments.stage("denoise"):
        raise RuntimeError
    at = {"service": "video", "stage": "denoise"}
    assert value(instruments.registry, "halfreel_stage_duration_seconds_count", **at) == 1
    assert 0.02 <= value(instruments.registry, "halfreel_stage_duration_seconds_sum", **at) < 1


def test_a_reply_and_a_clip_are_counted_in_their_own_units() -> None:
    llm, video = Instruments("llm"), Instruments("video")
    llm.reply(prompt_tokens=100, output_tokens=11, first_token_s=0.25, decode_s=1.0)
    assert value(llm.registry, "halfreel_prompt_tokens_total", service="llm") == 100
    assert value(llm.registry, "halfreel_output_tokens_total", service="llm") == 11
    assert value(llm.registry, "halfreel_time_to_first_token_seconds_sum", service="llm") == 0.25
    assert value(llm.registry, "halfreel_time_per_output_token_seconds_sum", service="llm") == pytest.approx(0.1)
    video.clip(frame_count=25, clip_s=2.5, work_s=10.0)
    assert value(video.registry, "halfreel_frames_total", service="video") == 25
    assert value(video.registry, "halfreel_clip_seconds_total", service="video") == 2.5
    assert value(video.registry, "halfreel_realtime_factor_ratio_sum", service="video") == 4


def test_a_rung_is_counted_without_its_value() -> None:
    instruments = Instruments("video", rungs=("decode_chunk", "unet_off"))
    for rung in ("decode_chunk_4", "decode_chunk_2", "unet_off", "decode", "unknown"):
        instruments.rung(rung)
    counts = {
        rung: value(instruments.registry, "halfreel_rungs_total", service="video", rung=rung)
        for rung in ("decode_chunk", "unet_off", "other")
    }
    assert counts == {"decode_chunk": 2, "unet_off": 1, "other": 2}


def test_buckets_reach_an_hour(made: tuple[Instruments, CollectorRegistry]) -> None:
    _, registry = made
    bounds: dict[str, set[float]] = {}
    for name, labels in samples(registry):
        if name.endswith("_seconds_bucket"):
            bounds.setdefault(name, set()).add(float(dict(labels)["le"]))
    assert bounds
    assert all(3600 in each for each in bounds.values())


def test_the_model_is_told_once_it_is_loaded() -> None:
    instruments = Instruments("llm")
    instruments.model("pocket", "fp32", "cpu")
    instruments.model("other", "fp16", "cuda:0")
    told = [dict(labels) for name, labels in samples(instruments.registry) if name == "halfreel_model_info"]
    assert told == [{"service": "llm", "model": "other", "dtype": "fp16", "device": "cuda:0"}]


def test_an_observation_in_a_trace_is_its_exemplar() -> None:
    instruments = Instruments("video")
    with joined(TRACEPARENT):
        instruments.step(0.3)
        instruments.nan()
    instruments.step(0.3)
    found = samples(instruments.registry)
    bucket = found[("halfreel_denoise_step_duration_seconds_bucket", frozenset({("service", "video"), ("le", "0.5")}))]
    assert (bucket.value, bucket.exemplar.labels) == (2, {"trace_id": TRACE})
    assert found[("halfreel_nan_detected_total", frozenset({("service", "video")}))].exemplar.labels == {
        "trace_id": TRACE
    }
    assert TRACE not in str([labels for _, labels in found])
