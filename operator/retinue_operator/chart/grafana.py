"""Panels and dashboards as small values, and their JSON as Grafana reads it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_WIDTH, _HEIGHT = 12, 8


@dataclass(frozen=True)
class Panel:
    """One graph: its queries by legend, and the unit of Grafana."""

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    text: str = ""


@dataclass(frozen=True)
class Dashboard:
    """One page. `choices` are drop-downs: name and the query of its values."""

    name: str
    title: str
    choices: tuple[tuple[str, str], ...]
    panels: tuple[Panel, ...]


def render(board: Dashboard) -> str:
    """The JSON text of a dashboard."""
    return json.dumps(_board(board), indent=1) + "\n"


def queries(board: Dashboard) -> list[str]:
    """Every PromQL query of a dashboard, with its variables as they are."""
    return [query for panel in board.panels for _, query in panel.queries]


def _board(board: Dashboard) -> dict[str, Any]:
    return {
        "uid": f"retinue-{board.name}",
        "title": board.title,
        "tags": ["retinue"],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": _variables(board.choices)},
        "panels": [_panel(number, panel) for number, panel in enumerate(board.panels)],
    }


def _variables(choices: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    source = {"name": "datasource", "type": "datasource", "query": "prometheus"}
    asked = [
        {"name": name, "type": "query", "datasource": _SOURCE, "query": query, "refresh": 2, "sort": 1}
        for name, query in choices
    ]
    return [source, *asked]


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.text,
        "datasource": _SOURCE,
        "gridPos": {"x": number % 2 * _WIDTH, "y": number // 2 * _HEIGHT, "w": _WIDTH, "h": _HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": _SOURCE, "expr": query, "legendFormat": legend}
            for index, (legend, query) in enumerate(panel.queries)
        ],
    }
