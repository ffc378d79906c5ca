"""The gateway's own metrics: films, scenes and disk, read at scrape time, and what is counted as it ends.

A database that answers late, or not at all, costs a scrape its figures of films and nothing else. It does not know
HTTP; the runtime serves the registry.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from halfreel.gateway.v1 import gateway_pb2 as pb
from halfreel_gateway import films
from halfreel_gateway.film_traces import MAX_KEPT_COUNT
from halfreel_runtime.instruments import DURATION_BUCKETS_S

_logger = logging.getLogger(__name__)

OUTCOMES = ("succeeded", "failed", "abandoned")
ENDS = {
    pb.Film.STATE_SUCCEEDED: "succeeded",
    pb.Film.STATE_FAILED: "failed",
    pb.Film.STATE_CANCELLED: "cancelled",
}
SCENE_STATES = ("waiting", "rendering", "rendered")
# Why films fail. A reason that is none of these, as a newer model server may tell one, is counted as OTHER.
FAILURE_REASONS = (
    "CLIP_CORRUPT",
    "DISK_FULL",
    "GRAMMAR_FAILED",
    "INTERNAL",
    "INVALID_FIELD",
    "MODEL_REFUSED",
    "NAN_DETECTED",
    "OUT_OF_MEMORY",
    "PLAN_REFUSED",
    "PROMPT_TOO_LONG",
    "SCRIPT_INVALID",
    "SERVER_LOST",
    "SERVER_STALLED",
)
OTHER = "OTHER"
# Of the 50 ms that a scrape may take.
_DATABASE_WITHIN_S = 0.035

_Counts = tuple[Mapping[int, int], Mapping[str, int]]


class FilmsCollector(Collector):
    """Films by state, and scenes of the films in the making.

    Args:
        film_counts: reads how many films are in each state.
        scene_counts: reads how many scenes of films that have not ended wait, are at work and are done.
        within_s: a scrape waits so long for the database.
    """

    def __init__(
        self,
        film_counts: Callable[[], Mapping[int, int]],
        scene_counts: Callable[[], Mapping[str, int]],
        within_s: float = _DATABASE_WITHIN_S,
    ) -> None:
        self._question = _Question(lambda: (film_counts(), scene_counts()))
        self._within_s = within_s

    def collect(self) -> Iterator[Metric]:
        """Two gauges, every state in each; nothing where the database does not answer in time."""
        answer = self._question.ask(self._within_s)
        if answer is None:
            return
        film_counts, scene_counts = answer
        family = GaugeMetricFamily("halfreel_films", "Films that are kept, by state.", labels=("state",))
        for name, value in pb.Film.State.items():
            if value != pb.Film.STATE_UNSPECIFIED:
                family.add_metric((name.removeprefix("STATE_").lower(),), film_counts.get(value, 0))
        yield family
        family = GaugeMetricFamily("halfreel_scenes", "Scenes of the films in the making.", labels=("state",))
        for state in SCENE_STATES:
            family.add_metric((state,), scene_counts.get(state, 0))
        yield family

    def describe(self) -> Iterator[Metric]:
        """Nothing: the database is not asked before the first scrape."""
        return iter(())


class DiskCollector(Collector):
    """The disk that clips and films are on; nothing where it can't be asked.

    Args:
        folder: on that disk.
        min_free_bytes: with less, no film is accepted.
    """

    def __init__(self, folder: Path, min_free_bytes: int) -> None:
        self._folder = folder
        self._min_free_bytes = min_free_bytes

    def collect(self) -> Iterator[Metric]:
        """Three gauges."""
        try:
            usage = shutil.disk_usage(self._folder)
        except OSError:
            return
        for name, text, value in (
            ("total", "Bytes of the disk that clips and films are on.", usage.total),
            ("free", "Bytes free on it.", usage.free),
            ("min_free", "With less free than this no film is accepted.", self._min_free_bytes),
        ):
            family = GaugeMetricFamily(f"halfreel_artifact_disk_{name}_bytes", text)
            family.add_metric((), value)
            yield family


class SceneMetrics:
    """Attempts at scenes.

    Args:
        registry: of this process.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._attempts = Counter(
            "halfreel_scene_attempts",
            "Scenes that a video server was at work on, by how that ended; abandoned is by cancel or our own stop.",
            ("outcome",),
            registry=registry,
        )
        for outcome in OUTCOMES:
            self._attempts.labels(outcome)

    def count(self, outcome: str) -> None:
        """One attempt ended."""
        self._attempts.labels(outcome).inc()


class FilmMetrics:
    """How films end, told by their events. Called from whichever thread changes a film.

    Args:
        registry: of this process.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._ended = Counter("halfreel_films_ended", "Films that ended, by how.", ("outcome",), registry=registry)
        self._failed = Counter("halfreel_films_failed", "Films that failed, by why.", ("reason",), registry=registry)
        self._seconds = Histogram(
            "halfreel_film_duration_seconds",
            "From a film's acceptance to its end; films that a restart interrupted are left out.",
            ("outcome",),
            buckets=DURATION_BUCKETS_S,
            registry=registry,
        )
        # Of films in the making here.
        self._accepted_s: dict[str, float] = {}
        for outcome in ENDS.values():
            self._ended.labels(outcome)
            self._seconds.labels(outcome)
        for reason in (*FAILURE_REASONS, OTHER):
            self._failed.labels(reason)

    def take(self, film_id: str, events: Sequence[pb.WatchFilmResponse]) -> None:
        """Counts what these events tell."""
        for event in events:
            if event.HasField("failed"):
                reason = event.failed.reason
                self._failed.labels(reason if reason in FAILURE_REASONS else OTHER).inc()
            elif event.HasField("state_changed"):
                self._entered(film_id, event.state_changed.state)

    def _entered(self, film_id: str, state: pb.Film.State.ValueType) -> None:
        if state == pb.Film.STATE_QUEUED:
            self._accepted_s[film_id] = time.monotonic()
            if len(self._accepted_s) > MAX_KEPT_COUNT:
                self._accepted_s.pop(next(iter(self._accepted_s)), None)
        elif films.has_ended(state):
            self._ended.labels(ENDS[state]).inc()
            accepted_s = self._accepted_s.pop(film_id, None)
            if accepted_s is not None:
                self._seconds.labels(ENDS[state]).observe(time.monotonic() - accepted_s)


class _Question:
    """Asks the database in a thread of its own, so that nobody waits longer than they wish.

    Args:
        read: the question.
    """

    def __init__(self, read: Callable[[], _Counts]) -> None:
        self._read = read
        self._lock = threading.Lock()
        self._asked: Future[_Counts] | None = None

    def ask(self, within_s: float) -> _Counts | None:
        """The answer to a question that was asked now or is still open; None where it does not come in time."""
        with self._lock:
            if self._asked is None or self._asked.done():
                self._asked = Future()
                threading.Thread(target=self._answer, args=(self._asked,), name="films-count", daemon=True).start()
            asked = self._asked
        try:
            return asked.result(within_s)
        except TimeoutError:
            return None
        except Exception as error:  # of the database, or a bug: the other figures are told all the same
            _logger.warning("films_not_counted", extra={"reason": type(error).__name__}, exc_info=error)
            return None

    def _answer(self, asked: Future[_Counts]) -> None:
        try:
            asked.set_result(self._read())
        except Exception as error:
            asked.set_exception(error)
