"""Writes the dashboards for Grafana from the files beside this one, or checks that the committed ones are theirs.

It does not know what is shown, nor where Grafana runs.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

from board import Board
from films import FILMS
from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import VariableOption, VariableRefresh
from language_model import LLM
from overview import OVERVIEW
from panel import DATASOURCE
from vram import VRAM

BOARDS = (OVERVIEW, VRAM, LLM, FILMS)
FOLDER = Path(__file__).parent / "provisioning" / "dashboards"
# What is picked above each dashboard: name, label, and where its choices come from.
VARIABLES = (
    ("service", "Service", "label_values(halfreel_build_info, service)"),
    ("gpu", "GPU", "label_values(halfreel_gpu_memory_total_bytes, gpu_uuid)"),
    ("model", "Model", "label_values(halfreel_model_info, model)"),
)


def built(board: Board) -> str:
    """The dashboard as JSON."""
    made = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags(["halfreel"])
        .refresh("10s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(1)
        .readonly()
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    )
    for name, label, query in VARIABLES:
        made = made.with_variable(
            dashboard.QueryVariable(name)
            .label(label)
            .datasource(DATASOURCE)
            .query({"query": query, "refId": "variable"})
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .multi(True)
            .include_all(True)
            .all_value(".*")
            .current(VariableOption(selected=True, text="All", value="$__all"))
        )
    ids = itertools.count(1)
    for row in board.rows:
        made = made.with_row(dashboard.Row(row.title).id(next(ids)))
        for panel in row.panels:
            made = made.with_panel(panel.built().id(next(ids)))
    return str(JSONEncoder(sort_keys=True, indent=1).encode(made.build())) + "\n"


def main() -> int:
    """Writes the files, or with --check only compares them."""
    parser = argparse.ArgumentParser(description="Writes the dashboards of Grafana from the files beside this one.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a committed file differs")
    check = parser.parse_args().check
    wanted = {FOLDER / f"{board.uid}.json": built(board) for board in BOARDS}
    found = {path: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.json")}
    if check:
        if found == wanted:
            return 0
        sys.stderr.write("the dashboards in deploy/grafana are not what its scripts say: run 'make fix'\n")
        return 1
    for path in found.keys() - wanted.keys():
        path.unlink()
    for path, text in wanted.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
