"""The gateway's own metrics: films by state, read at scrape time, and attempts at scenes, counted as they end.

It does not know HTTP; the runtime serves the registry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from halfreel.gateway.v1 import gateway_pb2 as pb

OUTCOMES = ("succeeded", "failed", "abandoned")


class FilmsCollector(Collector):
    """Films by state.

    Args:
        counts: reads them.
    """

    def __init__(self, counts: Callable[[], Mapping[int, int]]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        """One gauge, every state in it."""
        counts = self._counts()
        family = GaugeMetricFamily("halfreel_films", "Films that are kept, by state.", labels=("state",))
        for name, value in pb.Film.State.items():
            if value != pb.Film.STATE_UNSPECIFIED:
                family.add_metric((name.removeprefix("STATE_").lower(),), counts.get(value, 0))
        yield family

    def describe(self) -> Iterator[Metric]:
        """Nothing: the database is not asked before the first scrape."""
        return iter(())


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
