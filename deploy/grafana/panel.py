"""A panel in our own few words, and its form in Grafana. It does not know what is shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from grafana_foundation_sdk.builders import bargauge, common, prometheus, stat, table, timeseries
from grafana_foundation_sdk.models.common import (
    BigValueGraphMode,
    LegendDisplayMode,
    LegendPlacement,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import DataSourceRef
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

DATASOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
COLUMNS = 24

Kind = Literal["lines", "stack", "figure", "bars", "table"]


@dataclass(frozen=True)
class Query:
    """One query, and how its series are called: with {{label}} in it."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """What one panel shows.

    Attributes:
        title: a few words.
        description: what it means, and what to look for.
        unit: as Grafana names it.
        queries: one or more.
        kind: lines or stacked lines over time; one figure, bars or a table of this moment.
        width: in columns of 24.
        height: in rows.
    """

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    kind: Kind = "lines"
    width: int = 8
    height: int = 8

    def built(self) -> Any:
        """The panel for Grafana."""
        made = {"figure": _figure, "bars": _bars, "table": _table}.get(self.kind, _lines)(self)
        made.title(self.title).description(self.description).datasource(DATASOURCE)
        made.unit(self.unit).span(self.width).height(self.height)
        for number, query in enumerate(self.queries):
            target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(chr(ord("A") + number))
            target = target.range().exemplar(True) if self.kind in ("lines", "stack") else target.instant()
            if self.kind == "table":
                target = target.format(PromQueryFormat.TABLE)
            made.with_target(target)
        return made


def _lines(panel: Panel) -> Any:
    legend = (
        common.VizLegendOptions()
        .display_mode(LegendDisplayMode.LIST)
        .placement(LegendPlacement.BOTTOM)
        .show_legend(True)
    )
    tooltip = common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI)
    made = timeseries.Panel().legend(legend).tooltip(tooltip).min(0).line_width(1).fill_opacity(8)
    if panel.kind == "stack":
        made = made.stacking(common.StackingConfig().mode("normal")).fill_opacity(30)
    return made


def _figure(_: Panel) -> Any:
    return stat.Panel().graph_mode(BigValueGraphMode.AREA).reduce_options(_last())


def _bars(_: Panel) -> Any:
    return bargauge.Panel().reduce_options(_last()).min(0).orientation("horizontal")


def _table(_: Panel) -> Any:
    return table.Panel()


def _last() -> Any:
    return common.ReduceDataOptions().calcs(["lastNotNull"]).values(False)
