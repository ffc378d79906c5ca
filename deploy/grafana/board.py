"""A dashboard in our own few words, and the questions that panels have in common.

It does not know what is shown, nor Grafana's format.
"""

from __future__ import annotations

from dataclasses import dataclass

from panel import Panel, Query

# What is picked above each dashboard. Those of the gateway have no GPU and no model.
SERVICE = 'service=~"$service"'
GPU = f'{SERVICE}, gpu_uuid=~"$gpu"'
# Only of servers with one of the models that are picked.
OF_MODEL = 'and on (instance, service) halfreel_model_info{model=~"$model"}'
RATE = "[$__rate_interval]"


@dataclass(frozen=True)
class Row:
    """A heading, and the panels under it."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Board:
    """One dashboard."""

    uid: str
    title: str
    description: str
    rows: tuple[Row, ...]


def one(expr: str, legend: str = "") -> tuple[Query, ...]:
    """A panel's only query."""
    return (Query(expr, legend),)


def per_second(metric: str, by: str, labels: str = SERVICE) -> str:
    """How much a counter grows in a second."""
    return f"sum by ({by}) (rate({metric}{{{labels}}}{RATE}))"


def model_per_second(metric: str, by: str) -> str:
    """As `per_second`, of the models that are picked."""
    return f"sum by ({by}) (rate({metric}{{{SERVICE}}}{RATE}) {OF_MODEL})"


def quantiles(metric: str, by: str = "", *, of_model: bool = True) -> tuple[Query, ...]:
    """The middle and the slowest twentieth of a histogram."""
    rate = f"rate({metric}_bucket{{{SERVICE}}}{RATE})" + (f" {OF_MODEL}" if of_model else "")
    labels = ", ".join(part for part in ("le", by) if part)
    legend = " ".join(f"{{{{{label}}}}}" for label in by.split(", ") if label)
    return tuple(
        Query(f"histogram_quantile({quantile}, sum by ({labels}) ({rate}))", f"p{quantile * 100:.0f} {legend}".strip())
        for quantile in (0.5, 0.95)
    )


def of(service: str, queries: tuple[Query, ...]) -> tuple[Query, ...]:
    """The same questions of one kind of server alone."""
    return tuple(Query(query.expr.replace(SERVICE, f'service="{service}"'), query.legend) for query in queries)
