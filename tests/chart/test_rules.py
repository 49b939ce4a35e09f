"""Alerts fire when they should, have a test and a runbook each, and every query asks for metrics that are exposed."""

import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from retinue.api.pool import EngineType
from retinue.autoscaling.engine_metrics import ENGINE_METRICS, EngineMetrics, Series
from retinue.conditions import ConditionType, Reason
from retinue_emulator.engine.tier import __file__ as tier_source
from retinue_emulator.loopback.prometheus_config import POD_LABELS
from retinue_gateway.gauges import __file__ as gateway_gauges_source
from retinue_gateway.metrics import GatewayMetrics
from retinue_operator.cache import Cache
from retinue_operator.chart.dashboards import DASHBOARDS
from retinue_operator.chart.grafana import Dashboard, queries
from retinue_operator.controllers.agentpool import DecisionMetrics
from retinue_operator.metrics import Metrics
from retinue_operator.objectmetrics import ObjectCollector

from .conftest import CHART, REPOSITORY, Helm, value_sets

RULES = CHART / "files" / "rules.yaml"
TESTS = Path(__file__).parent / "rules_test.yaml"
RUNBOOKS = REPOSITORY / "docs" / "runbooks"


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def alerts() -> list[str]:
    return [rule["alert"] for rule in rules() if "alert" in rule]


def test_the_rules_do_what_their_tests_say(tools: Mapping[str, Path], tmp_path: Path) -> None:
    for file in (RULES, TESTS):
        shutil.copy(file, tmp_path)
    done = subprocess.run(
        [tools["promtool"], "test", "rules", TESTS.name], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["kind", "namespaced", "secured"])
def test_the_embedded_prometheus_gets_a_valid_configuration_with_the_rules(
    name: str, helm4: Helm, tools: Mapping[str, Path], tmp_path: Path
) -> None:
    values = next(path for path in value_sets() if path.stem == name)
    found = [
        o for o in helm4.render(values) if (o["kind"], o["metadata"]["name"]) == ("ConfigMap", "retinue-prometheus")
    ]
    config = yaml.safe_load(found[0]["data"]["prometheus.yml"])
    assert config["rule_files"] == ["/etc/prometheus/rules.yml"]
    config["rule_files"] = ["rules.yml"]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    (tmp_path / "rules.yml").write_text(found[0]["data"]["rules.yml"])
    # The token and the authorities of a pod are not here, so service discovery is only checked for its syntax.
    done = subprocess.run(
        [tools["promtool"], "check", "config", "--syntax-only", "prometheus.yml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert yaml.safe_load((tmp_path / "rules.yml").read_text()) == yaml.safe_load(RULES.read_text())
    pods = next(job for job in config["scrape_configs"] if job["job_name"] == "retinue-pods")
    named = {rule["target_label"] for rule in pods["relabel_configs"] if "target_label" in rule}
    assert named == {"namespace", "pod", *POD_LABELS.values()}


def test_every_alert_is_seen_firing_and_silent_in_the_rule_tests() -> None:
    cases = [case for test in yaml.safe_load(TESTS.read_text())["tests"] for case in test["alert_rule_test"]]
    firing = {case["alertname"] for case in cases if case.get("exp_alerts")}
    silent = {case["alertname"] for case in cases if not case.get("exp_alerts")}
    assert firing == set(alerts())
    assert set(alerts()) - silent <= {"RetinueSLOBurnSlow"}


@pytest.mark.parametrize("alert", alerts())
def test_every_alert_has_a_runbook_that_says_what_to_look_at_and_what_to_do(alert: str) -> None:
    page = (RUNBOOKS / f"{alert}.md").read_text()
    assert page.startswith(f"# {alert}\n")
    for heading in ("## What it means", "## Look at", "## Do"):
        assert heading in page, heading


def test_no_runbook_is_about_an_alert_that_is_gone() -> None:
    assert {path.stem for path in RUNBOOKS.glob("Retinue*.md")} == set(alerts())


def test_rules_name_conditions_and_reasons_that_exist() -> None:
    text = RULES.read_text()
    for label, known in (("type", ConditionType), ("reason", Reason)):
        named = {name for found in re.findall(rf'\b{label}=~?"([^"]+)"', text) for name in found.split("|")}
        assert named <= {member.value for member in known}, label
        assert named, label


@pytest.mark.parametrize("board", DASHBOARDS, ids=lambda board: board.name)
def test_every_query_of_a_dashboard_is_valid(board: Dashboard, tools: Mapping[str, Path], tmp_path: Path) -> None:
    checked = [
        {"record": f"query:{number}", "expr": with_variables(query)} for number, query in enumerate(queries(board))
    ]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": board.name, "rules": checked}]}))
    done = subprocess.run([tools["promtool"], "check", "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def with_variables(query: str) -> str:
    return re.sub(r"\$\w+", "x", query.replace("$__rate_interval", "5m"))


def test_rules_and_dashboards_ask_for_metrics_that_are_exposed() -> None:
    asked = {name for rule in rules() for name in metric_names(str(rule["expr"]))}
    asked |= {name for board in DASHBOARDS for query in queries(board) for name in metric_names(query)}
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    assert asked - recorded - exposed() == set()
    assert len(asked) > 30


def metric_names(query: str) -> set[str]:
    return set(re.findall(r"\b(?:retinue_|retinue:|vllm:|master_)[\w:]+", query))


def exposed() -> set[str]:
    metrics = Metrics()
    DecisionMetrics(metrics)
    metrics.registry.register(ObjectCollector(Cache()))
    names = {family.name for family in ObjectCollector(Cache()).collect()}
    for registry in (metrics.registry, GatewayMetrics().registry):
        for family in registry.collect():
            suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
            names |= {family.name + suffix for suffix in suffixes}
    names |= set(engine_names(ENGINE_METRICS[EngineType.SIMULATED]))
    # These two are collectors around live state; their families are named in the source.
    gauges = re.findall(r'_family\(\s*"(\w+)"', Path(gateway_gauges_source).read_text())
    names |= {f"retinue_gateway_{name}" for name in gauges}
    server = re.findall(r'\("((?:retinue_tier|master)_\w+)", "', Path(tier_source).read_text())
    return names | set(server) | {f"{name}_total" for name in server if name.endswith("_tokens")}


def engine_names(engine: EngineMetrics) -> Iterable[str]:
    for value in vars(engine).values():
        for series in value if isinstance(value, tuple) else (value,):
            if isinstance(series, Series):
                yield series.name
                yield f"{series.name}_bucket"
    yield "vllm:prompt_tokens_by_source_total"
