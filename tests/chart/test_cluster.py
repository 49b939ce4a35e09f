"""The chart against a real API server: every object is accepted; install, upgrade and uninstall do what they say."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from retinue_emulator.loopback import ClusterAccess, ControlPlane

from .conftest import CHART, RELEASE, Helm, value_sets

MONITORING = Path(__file__).parent / "monitoring-crds.yaml"
NAMESPACE = "retinue-system"
KINDS = (
    "deployments,daemonsets,services,serviceaccounts,configmaps,poddisruptionbudgets,networkpolicies,roles,rolebindings"
)


@pytest.fixture(scope="module")
def release_namespace(cluster: ClusterAccess) -> Iterator[str]:
    """The namespaces that value sets name, and the kinds of monitoring; left as they are when they exist already."""
    for name in (NAMESPACE, "agents", "batch"):
        manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        cluster.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(manifest))
    cluster.kubectl("apply", "--server-side", "-f", str(MONITORING))
    cluster.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", str(MONITORING))
    yield NAMESPACE
    cluster.kubectl("delete", "-f", str(MONITORING))


@pytest.mark.component
@pytest.mark.parametrize("values", value_sets(), ids=lambda path: path.stem)
def test_the_api_server_accepts_every_object_without_an_unknown_field(
    helm: Helm, cluster: ClusterAccess, release_namespace: str, values: Path
) -> None:
    objects = helm.render(values, namespace=release_namespace)
    text = yaml.safe_dump_all(objects)
    flags = (
        "--dry-run=server",
        "--server-side",
        "--force-conflicts",
        "--field-manager=chart-test",
        "--validate=strict",
    )
    answer = cluster.kubectl("apply", *flags, "-o", "name", "-f", "-", stdin=text)
    assert len(answer.splitlines()) == len(objects)


@pytest.mark.component
def test_restricted_pod_security_has_nothing_against_the_pods(
    helm4: Helm, cluster: ClusterAccess, namespace: str
) -> None:
    cluster.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    values = next(path for path in value_sets() if path.stem == "namespaced")
    workloads = [o for o in helm4.render(values, namespace=namespace) if o["kind"] == "Deployment"]
    assert len(workloads) == 3
    for manifest in workloads:
        template = manifest["spec"]["template"]
        name = manifest["metadata"]["name"]
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}}
        cluster.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(account))
        pod = {"apiVersion": "v1", "kind": "Pod", "spec": template["spec"]}
        pod["metadata"] = {**template["metadata"], "name": name, "namespace": namespace}
        answer = cluster.kubectl("create", "--dry-run=server", "-o", "name", "-f", "-", stdin=json.dumps(pod))
        assert answer.strip() == f"pod/{name}"


def listed(cluster: ClusterAccess, kinds: str, *flags: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(cluster.kubectl("get", kinds, "-o", "json", *flags))["items"]
    return found


@pytest.mark.component
def test_install_upgrade_and_uninstall_keep_crds_and_custom_resources(helm: Helm, empty_cluster: ControlPlane) -> None:
    cluster, config = empty_cluster, empty_cluster.kubeconfig
    notes = helm.succeed("install", RELEASE, str(CHART), "-n", NAMESPACE, "--create-namespace", kubeconfig=config)
    assert "kubectl -n retinue-system rollout status deployment/retinue-operator" in notes
    assert "No Prometheus is set" in notes
    cluster.kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd", "agentpools.retinue.dev")
    tier = {
        "apiVersion": "retinue.dev/v1alpha1",
        "kind": "KVCacheTier",
        "metadata": {"name": "warm", "namespace": "default"},
        "spec": {"medium": "HostMemory", "backend": "Engine", "capacityPerMember": "1Gi"},
    }
    cluster.kubectl("create", "-f", "-", stdin=json.dumps(tier))

    # An older release had fewer columns: the upgrade brings the CRD to what this chart has.
    cluster.kubectl(
        "patch",
        "crd",
        "kvcachetiers.retinue.dev",
        "--type=json",
        "-p",
        '[{"op": "remove", "path": "/spec/versions/0/additionalPrinterColumns/0"}]',
    )
    columns = len(listed_columns(cluster))
    upgrade = ("upgrade", RELEASE, str(CHART), "-n", NAMESPACE, "--set", "prometheus.embedded.enabled=true")
    # Helm 4 applies on the server's side, where the patch above has become another owner of the field.
    forced = ("--force-conflicts",) if helm.path.name == "helm4" else ()
    notes = helm.succeed(*upgrade, *forced, kubeconfig=config)
    assert "No Prometheus is set" not in notes
    assert len(listed_columns(cluster)) == columns + 1
    deployments = {o["metadata"]["name"] for o in listed(cluster, "deployments", "-n", NAMESPACE)}
    assert deployments == {"retinue-operator", "retinue-gateway", "retinue-prometheus"}

    helm.succeed("uninstall", RELEASE, "-n", NAMESPACE, kubeconfig=config)
    left = [o for o in listed(cluster, KINDS, "-A") if o["metadata"].get("labels", {}).get("helm.sh/chart")]
    assert left == []
    cluster_wide = listed(cluster, "clusterroles,clusterrolebindings,priorityclasses")
    assert [o for o in cluster_wide if o["metadata"]["name"].startswith("retinue")] == []
    assert len([o for o in listed(cluster, "crds") if o["spec"]["group"] == "retinue.dev"]) == 5
    assert [o["metadata"]["name"] for o in listed(cluster, "kvcachetiers", "-n", "default")] == ["warm"]

    # The same release takes its CRDs over again, because they still carry its name.
    helm.succeed("install", RELEASE, str(CHART), "-n", NAMESPACE, kubeconfig=config)


def listed_columns(cluster: ClusterAccess) -> list[dict[str, Any]]:
    crd = json.loads(cluster.kubectl("get", "crd", "kvcachetiers.retinue.dev", "-o", "json"))
    columns: list[dict[str, Any]] = crd["spec"]["versions"][0]["additionalPrinterColumns"]
    return columns
