"""Grafana's part of the work on a dashboard: its panels' queries with the variables filled in."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from .manifests import Object
from .prometheus import Prometheus

RATE_INTERVAL = "20s"
_LABEL_VALUES = re.compile(r"label_values\((?P<selector>.*),\s*(?P<label>\w+)\)")


@dataclass(frozen=True)
class Panel:
    """One query of one panel; `panel` is how a person finds it."""

    panel: str
    expression: str


@dataclass(frozen=True)
class Dashboard:
    """A dashboard as Grafana reads it."""

    name: str
    model: Object

    def variables(self, prometheus: Prometheus, wanted: Mapping[str, str]) -> dict[str, str]:
        """The wanted choice for each of its variables; AssertionError when Prometheus does not offer it."""
        chosen: dict[str, str] = {}
        for variable in self.model["templating"]["list"]:
            if variable["type"] != "query":
                continue
            name = variable["name"]
            found = _LABEL_VALUES.fullmatch(_filled(variable["query"], chosen))
            assert found is not None, f"{self.name}: variable {name} is not label_values(...)"
            offered = {series["metric"].get(found["label"], "") for series in prometheus.query(found["selector"])}
            assert wanted[name] in offered, f"{self.name}: {name} offers {sorted(offered)}, not {wanted[name]}"
            chosen[name] = wanted[name]
        return chosen

    def panels(self, variables: Mapping[str, str]) -> Iterator[Panel]:
        """All queries, with the variables filled in."""
        for panel in _flat(self.model["panels"]):
            for target in panel.get("targets", []):
                name = f"{self.name}/{panel['title']}/{target['refId']}"
                yield Panel(name, _filled(target["expr"], {**variables, "__rate_interval": RATE_INTERVAL}))


def dashboards(config_maps: list[Object]) -> list[Dashboard]:
    """The dashboards in ConfigMaps, named as their files are."""
    return [
        Dashboard(file.removeprefix("retinue-").removesuffix(".json"), json.loads(text))
        for found in config_maps
        for file, text in found["data"].items()
    ]


def _flat(panels: list[Object]) -> Iterator[Object]:
    for panel in panels:
        yield panel
        yield from _flat(panel.get("panels", []))


def _filled(text: str, variables: Mapping[str, str]) -> str:
    return re.sub(r"\$\{?(\w+)\}?", lambda found: variables[found[1]], text)
