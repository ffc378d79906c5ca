"""Which trace a film's work belongs to: its client's, and after a restart its own."""

from __future__ import annotations

import pytest

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel_gateway.film_traces import MAX_KEPT_COUNT, FilmTraces
from halfreel_runtime.logs import request_id_var
from halfreel_runtime.tracing import TraceContext, joined, trace_var

FILM = "ab" * 16
TRACE = TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")


def entered(state: pb.Film.State.ValueType) -> list[pb.WatchFilmResponse]:
    return [pb.WatchFilmResponse(state_changed=pb.WatchFilmResponse.StateChanged(state=state))]


def inside(traces: FilmTraces) -> tuple[TraceContext | None, str]:
    with traces.step(FILM, "render_scene", 0):
        return trace_var.get(), request_id_var.get()


def test_work_is_in_the_trace_and_under_the_request_that_made_the_film() -> None:
    traces = FilmTraces()
    with joined(TRACE.traceparent):
        request_id_var.set("order-77")
        traces.take(FILM, entered(pb.Film.STATE_QUEUED))
    request_id_var.set("")
    assert inside(traces) == (TRACE, "order-77")
    assert (trace_var.get(), request_id_var.get()) == (None, "")


def test_after_a_restart_it_is_in_a_trace_of_the_films_own() -> None:
    assert inside(FilmTraces()) == (TraceContext(FILM, FILM[:16]), FILM)


def test_an_ended_film_is_forgotten() -> None:
    traces = FilmTraces()
    with joined(TRACE.traceparent):
        traces.take(FILM, entered(pb.Film.STATE_QUEUED))
        traces.take(FILM, entered(pb.Film.STATE_CANCELLED))
    context, _ = inside(traces)
    assert context is not None
    assert context.trace_id == FILM
    assert not traces._begun


def test_films_that_end_elsewhere_are_not_kept_for_ever() -> None:
    traces = FilmTraces()
    for number in range(MAX_KEPT_COUNT + 100):
        traces.take(f"{number:032x}", entered(pb.Film.STATE_QUEUED))
    assert len(traces._begun) == MAX_KEPT_COUNT
    assert f"{MAX_KEPT_COUNT + 99:032x}" in traces._begun


def test_a_step_that_fails_leaves_nothing_behind() -> None:
    traces = FilmTraces()
    with pytest.raises(RuntimeError), traces.step(FILM, None):
        raise RuntimeError
    assert (trace_var.get(), request_id_var.get()) == (None, "")
