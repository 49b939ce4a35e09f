"""What the chart renders: as in the golden files, the same with Helm 3 and 4, hardened, and refusing typos.

RETINUE_UPDATE_GOLDEN=1 writes the golden files anew; VERSION in them stands for the present version.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from retinue.version import VERSION

from .conftest import CHART, Helm, value_sets

GOLDEN = Path(__file__).parent / "golden"
SETS = pytest.mark.parametrize("values", value_sets(), ids=lambda path: path.stem)


class _Readable(yaml.SafeDumper):
    """Texts of several lines as blocks, and lists without references."""

    def ignore_aliases(self, _: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Readable.add_representer(str, _text)


def golden_text(objects: list[dict[str, Any]]) -> str:
    """The objects as a person reads them: CRDs and dashboards by name only, because they have tests of their own."""
    shown = []
    for manifest in objects:
        if manifest["kind"] == "CustomResourceDefinition":
            manifest = {"kind": manifest["kind"], "metadata": manifest["metadata"]}
        if "-dashboard-" in manifest["metadata"]["name"]:
            manifest = {**manifest, "data": sorted(manifest["data"])}
        shown.append(manifest)
    text = yaml.dump_all(shown, Dumper=_Readable, sort_keys=False, width=120)
    return re.sub(rf"(: |:|retinue-){re.escape(VERSION)}$", r"\1VERSION", text, flags=re.MULTILINE)


def containers(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = manifest["spec"]["template"]["spec"]["containers"]
    return found


def workloads(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {o["metadata"]["name"]: o for o in objects if o["kind"] in ("Deployment", "DaemonSet")}


def of_kind(objects: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {o["metadata"]["name"]: o for o in objects if o["kind"] == kind}


def environment(container: dict[str, Any]) -> dict[str, Any]:
    return {variable["name"]: variable.get("value", variable.get("valueFrom")) for variable in container["env"]}


def values_file(name: str) -> Path:
    return next(path for path in value_sets() if path.stem == name)


@SETS
def test_the_rendered_objects_are_those_of_the_golden_file(helm: Helm, values: Path) -> None:
    text = golden_text(helm.render(values))
    golden = GOLDEN / values.name
    if os.environ.get("RETINUE_UPDATE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()


@SETS
def test_lint_finds_nothing_to_say(helm: Helm, values: Path) -> None:
    shown = helm.succeed("lint", "--strict", str(CHART), "--values", str(values))
    assert "1 chart(s) linted, 0 chart(s) failed" in shown


@SETS
def test_every_object_carries_the_labels_of_the_chart_and_a_name_of_its_own(helm4: Helm, values: Path) -> None:
    objects = [o for o in helm4.render(values) if o["kind"] != "CustomResourceDefinition"]
    places = [(o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in objects]
    assert len(set(places)) == len(places)
    for manifest in objects:
        labels = manifest["metadata"]["labels"]
        assert {"app.kubernetes.io/name", "app.kubernetes.io/instance", "helm.sh/chart"} <= labels.keys(), manifest


@SETS
def test_no_pod_of_the_chart_is_one_of_those_that_the_operator_manages(helm4: Helm, values: Path) -> None:
    for manifest in workloads(helm4.render(values)).values():
        labels = manifest["spec"]["template"]["metadata"]["labels"]
        assert labels["app.kubernetes.io/managed-by"] != "retinue"


@SETS
def test_all_pods_but_the_emulators_are_restricted_with_a_read_only_root(helm4: Helm, values: Path) -> None:
    for name, manifest in workloads(helm4.render(values)).items():
        for container in containers(manifest):
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            if name.endswith("-emulator"):
                continue
            pod = manifest["spec"]["template"]["spec"]["securityContext"]
            assert pod["runAsNonRoot"] is True
            assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@SETS
def test_a_slow_start_is_no_reason_to_be_killed(helm4: Helm, values: Path) -> None:
    for manifest in workloads(helm4.render(values)).values():
        for container in containers(manifest):
            start, alive = container["startupProbe"], container["livenessProbe"]
            assert start["httpGet"] == alive["httpGet"]
            assert start["periodSeconds"] * start["failureThreshold"] >= 120


def test_by_default_two_operators_stand_on_different_nodes_and_are_not_evicted_together(helm4: Helm) -> None:
    objects = helm4.render(values_file("default"))
    operator = workloads(objects)["retinue-operator"]["spec"]
    assert operator["replicas"] == 2
    spread = operator["template"]["spec"]["topologySpreadConstraints"]
    assert [rule["topologyKey"] for rule in spread] == ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]
    assert of_kind(objects, "PodDisruptionBudget")["retinue-operator"]["spec"]["maxUnavailable"] == 1
    assert (
        environment(containers(workloads(objects)["retinue-operator"])[0])["RETINUE_LEASE_NAME"] == "retinue-operator"
    )


def test_the_lease_of_the_operator_is_the_one_that_its_role_names(helm4: Helm) -> None:
    objects = helm4.render(values_file("default"), "--set", "fullnameOverride=other")
    named = of_kind(objects, "Role")["other-operator-lease"]["rules"][1]["resourceNames"]
    assert named == [environment(containers(workloads(objects)["other-operator"])[0])["RETINUE_LEASE_NAME"]]


def test_with_named_namespaces_the_cluster_role_has_nothing_that_lives_in_a_namespace(helm4: Helm) -> None:
    objects = helm4.render(values_file("namespaced"))
    roles = of_kind(objects, "ClusterRole")
    assert set(roles) == {"retinue-operator"}
    granted = {resource for rule in roles["retinue-operator"]["rules"] for resource in rule["resources"]}
    assert granted == {"nodes", "nodeclasses", "nodeclasses/status"}
    places = {
        o["metadata"]["namespace"]
        for o in objects
        if o["kind"] == "Role" and o["metadata"]["name"] in ("retinue-operator", "retinue-gateway")
    }
    assert places == {"agents", "batch"}
    for name, variable in (("operator", "RETINUE_NAMESPACES"), ("gateway", "RETINUE_GATEWAY_NAMESPACES")):
        assert environment(containers(workloads(objects)[f"retinue-{name}"])[0])[variable] == "agents,batch"


def test_prometheus_credentials_reach_the_operator_as_files_and_never_as_values(helm4: Helm) -> None:
    objects = helm4.render(values_file("production"))
    operator = workloads(objects)["retinue-operator"]
    container = containers(operator)[0]
    given = environment(container)
    assert given["RETINUE_PROMETHEUS_USERNAME"] == {"secretKeyRef": {"name": "prometheus-login", "key": "username"}}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in operator["spec"]["template"]["spec"]["volumes"]}
    for variable, volume in {
        "PASSWORD_FILE": "prometheus-basic",
        "CA_FILE": "prometheus-ca",
        "CERT_FILE": "prometheus-client",
        "KEY_FILE": "prometheus-client",
    }.items():
        folder, _, file = given[f"RETINUE_PROMETHEUS_{variable}"].rpartition("/")
        assert folder == mounts[volume]
        assert file in [item["path"] for item in volumes[volume]["secret"]["items"]]
    assert json.loads(given["RETINUE_PROMETHEUS_HEADERS"]) == {"X-Scope-OrgID": "inference"}
    assert not of_kind(objects, "Secret")


def test_every_image_comes_from_the_registry_that_was_set(helm4: Helm) -> None:
    values = values_file("production")
    more = ("--set", "emulator.enabled=true,emulator.inventory=x", "--set", "prometheus.embedded.enabled=true")
    for manifest in workloads(helm4.render(values, *more)).values():
        for container in containers(manifest):
            assert container["image"].startswith("registry.example.com/platform/")


def test_the_environment_is_made_of_settings_that_exist(helm4: Helm) -> None:
    from retinue_gateway.settings import GatewaySettings
    from retinue_operator.settings import Settings

    known = {f"RETINUE_{name.upper()}" for name in Settings.model_fields}
    known |= {f"RETINUE_GATEWAY_{name.upper()}" for name in GatewaySettings.model_fields}
    for values in value_sets():
        for manifest in workloads(helm4.render(values)).values():
            used = {name for container in containers(manifest) for name in environment_names(container)}
            assert used <= known, manifest["metadata"]["name"]


def test_the_inventory_reaches_the_emulator_as_a_file_that_it_can_read(helm4: Helm, tmp_path: Path) -> None:
    from retinue_emulator.inventory import load_inventory

    objects = helm4.render(values_file("kind"))
    file = tmp_path / "inventory.yaml"
    file.write_text(of_kind(objects, "ConfigMap")["retinue-inventory"]["data"]["inventory.yaml"])
    assert load_inventory(file).cluster == "kind"
    arguments = containers(workloads(objects)["retinue-emulator"])[0]["args"]
    assert arguments[:2] == ["kubelet-plugin", "--inventory=/etc/retinue/inventory.yaml"]


def environment_names(container: dict[str, Any]) -> set[str]:
    return {variable["name"] for variable in container.get("env", []) if variable["name"].startswith("RETINUE_")}


def test_monitoring_objects_are_made_when_their_kinds_are_served(helm4: Helm) -> None:
    default = values_file("default")
    assert not of_kind(helm4.render(default), "PodMonitor")
    served = helm4.render(default, "--api-versions", "monitoring.coreos.com/v1")
    assert set(of_kind(served, "PodMonitor")) == {"retinue-operator", "retinue-gateway", "retinue-engines"}
    assert set(of_kind(served, "PrometheusRule")) == {"retinue"}


def test_the_links_of_alerts_point_to_where_the_runbooks_are(helm4: Helm) -> None:
    rules = of_kind(helm4.render(values_file("monitored")), "PrometheusRule")["retinue-agents"]
    links = re.findall(r"runbook_url: (\S+)", yaml.safe_dump(rules))
    assert links
    assert all(link.startswith("https://runbooks.example.com/retinue/Retinue") for link in links)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("operator.replica=3", "replica"),
        ("prometheus.auth.basic.secretName=x", "secretName"),
        ("gatway.enabled=false", "gatway"),
        ("operator.image.digest=latest", "digest"),
        ("prometheus.url=prometheus:9090", "url"),
        ("gateway.service.type=Ingress", "type"),
        ("watch.namespaces={Agents}", "namespaces"),
        ("operator.replicas=-1", "replicas"),
        ("operator.resources.requests.cpu=fast", "cpu"),
    ],
)
def test_a_typo_in_the_values_is_refused_by_name(helm: Helm, setting: str, told: str) -> None:
    refused = helm.run("template", "retinue", str(CHART), "--set", setting)
    assert refused.returncode != 0
    assert told in refused.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            "prometheus.auth.basic.secret=a,prometheus.auth.bearer.secret=b",
            "set at most one of basic.secret, bearer.secret and serviceAccountToken.enabled",
        ),
        ("emulator.enabled=true", "give the text of an inventory file"),
        ("operator.leaderElection.renewDeadline=20", "retryPeriod < renewDeadline < leaseDuration must hold"),
    ],
)
def test_values_that_do_not_fit_together_are_refused_with_the_reason(helm4: Helm, settings: str, message: str) -> None:
    refused = helm4.run("template", "retinue", str(CHART), "--set", settings)
    assert refused.returncode != 0
    assert message in refused.stderr
