"""The cluster under test from outside: kubectl, HTTP, and nodes as containers where the cluster is a kind one."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from retinue_emulator.kind.cluster import KindCluster
from retinue_emulator.kind.release import Release
from retinue_emulator.loopback import ClusterAccess, LoopbackError, eventually

Object = dict[str, Any]
T = TypeVar("T")
MANAGED = "app.kubernetes.io/managed-by=retinue"
PROMETHEUS = "retinue-prometheus:9090"


def condition(found: Mapping[str, Any], type_: str) -> Object:
    """A condition of an object's status; empty where it is not there yet."""
    return next((c for c in found.get("status", {}).get("conditions") or [] if c["type"] == type_), {})


def uids(objects: Mapping[str, Object]) -> set[str]:
    """The uids of objects."""
    return {found["metadata"]["uid"] for found in objects.values()}


@dataclass(frozen=True)
class World:
    """Admin access to the cluster under test with the release on it.

    kind: None on a cluster that somebody else made. gateway_url: the gateway, reachable from this machine without the
    API server. speed: how many times faster than real engines run by default.
    """

    access: ClusterAccess
    release: Release
    gateway_url: str
    speed: float
    values: Mapping[str, Any]
    kind: KindCluster | None
    artifacts: Path

    # --- objects -----------------------------------------------------------------------------------------------------

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout: float = 120) -> str:
        """kubectl's standard output; raises KubectlError."""
        return self.access.kubectl(*arguments, stdin=stdin, timeout=timeout)

    def apply(self, *objects: Object) -> None:
        """kubectl apply --server-side."""
        self.access.apply(*objects)

    def get(self, *arguments: str) -> Object:
        """kubectl get ... -o json."""
        return self.access.get(*arguments)

    def pods(self, namespace: str, selector: str = MANAGED) -> dict[str, Object]:
        """Live pods by name, without those that are being deleted."""
        listed = self.get("pods", "-n", namespace, "-l", selector)["items"]
        return {p["metadata"]["name"]: p for p in listed if "deletionTimestamp" not in p["metadata"]}

    def events(self, namespace: str, kind: str, name: str) -> str:
        """Reasons and messages of an object's events, a line each."""
        listed = self.get("events", "-n", namespace, "--field-selector", f"involvedObject.name={name}")["items"]
        lines = [f"{e['reason']} {e.get('message', '')}" for e in listed if e["involvedObject"]["kind"] == kind]
        return "\n".join(lines)

    async def ready(self, namespace: str, kind: str, name: str, timeout: float = 90) -> Object:
        """The object once its Ready condition is True for its present generation."""

        async def probe() -> Object | None:
            found = await asyncio.to_thread(self.get, kind, name, "-n", namespace)
            current = found.get("status", {}).get("observedGeneration") == found["metadata"]["generation"]
            return found if current and condition(found, "Ready").get("status") == "True" else None

        return await self.until(probe, f"{kind} {name} is Ready", timeout)

    async def replicas(self, namespace: str, kind: str, name: str, wanted: int, timeout: float = 90) -> Object:
        """The pool once exactly `wanted` instances are ready and none drains or starts."""

        async def probe() -> Object | None:
            found = await asyncio.to_thread(self.get, kind, name, "-n", namespace)
            status = found.get("status", {})
            counts = (status.get("replicas"), status.get("readyReplicas"), status.get("drainingReplicas"))
            return found if counts == (wanted, wanted, 0) else None

        return await self.until(probe, f"{kind} {name} has {wanted} instances", timeout)

    async def conditioned(
        self, namespace: str, kind: str, name: str, type_: str, status: str, reason: str = "", timeout: float = 90
    ) -> Object:
        """The condition once it has this status (and reason)."""

        async def probe() -> Object | None:
            where = ("-n", namespace) if namespace else ()
            found = condition(await asyncio.to_thread(self.get, kind, name, *where), type_)
            fits = found.get("status") == status and (not reason or found.get("reason") == reason)
            return found if fits else None

        return await self.until(probe, f"{kind} {name} has {type_}={status} {reason}", timeout)

    async def until(
        self, probe: Callable[[], Awaitable[T | None]], what: str, timeout: float = 90, interval: float = 0.5
    ) -> T:
        """`eventually` with the interval that kubectl affords."""
        return await eventually(probe, what=what, timeout=timeout, interval=interval)

    # --- the product -------------------------------------------------------------------------------------------------

    def base_url(self, namespace: str, pool: str) -> str:
        """Base URL of an AgentPool for an OpenAI client."""
        return f"{self.gateway_url}/{namespace}/{pool}/v1"

    def query(self, promql: str) -> list[tuple[dict[str, str], float]]:
        """An instant query at the Prometheus of the release: labels and value of each series."""
        path = f"/api/v1/namespaces/{self.release.namespace}/services/{PROMETHEUS}/proxy/api/v1/query"
        answer = json.loads(self.kubectl("get", "--raw", f"{path}?query={quote(promql)}"))
        return [(series["metric"], float(series["value"][1])) for series in answer["data"]["result"]]

    def system_pods(self, component: str) -> dict[str, Object]:
        """Live pods of a component of the release."""
        return self.pods(
            self.release.namespace,
            f"app.kubernetes.io/instance={self.release.name},app.kubernetes.io/component={component}",
        )

    def leader(self) -> str:
        """The name of the operator pod that holds the lease; empty when nobody does."""
        lease = self.get("lease", f"{self.release.name}-operator", "-n", self.release.namespace)
        return str(lease["spec"].get("holderIdentity") or "").rsplit("_", 1)[0]

    def operator_metrics(self, pod: str) -> str:
        """The metrics page of an operator pod."""
        return self.kubectl(
            "get", "--raw", f"/api/v1/namespaces/{self.release.namespace}/pods/{pod}:8080/proxy/metrics"
        )

    def node_of(self, pod: str) -> str:
        """The node of a pod of the release."""
        return str(self.get("pod", pod, "-n", self.release.namespace)["spec"]["nodeName"])

    def restarts(self, component: str) -> dict[str, int]:
        """How often the container of each pod of a component was started again."""
        found = self.system_pods(component).items()
        return {name: sum(c["restartCount"] for c in p["status"].get("containerStatuses", [])) for name, p in found}

    # --- nodes -------------------------------------------------------------------------------------------------------

    def machine(self) -> KindCluster:
        """The kind cluster. Raises LoopbackError where the nodes are not ours to stop."""
        if self.kind is None:
            raise LoopbackError("this is not a kind cluster of ours", "run without KUBECONFIG")
        return self.kind

    def kill_container(self, node: str, pod: str, namespace: str, signal: str = "KILL") -> None:
        """Sends a signal to the main process of the first container of a pod, in its node."""
        uid = self.get("pod", pod, "-n", namespace)["status"]["containerStatuses"][0]["containerID"]
        container = re.sub(r"^[a-z]+://", "", uid)
        self.machine().in_node(
            node, "ctr", "--namespace", "k8s.io", "task", "kill", "--signal", f"SIG{signal}", container
        )

    def evict(self, namespace: str, pod: str) -> None:
        """Asks the eviction API to take a pod away, as kubectl drain does."""
        wanted = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": pod, "namespace": namespace},
        }
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction"
        self.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(wanted))

    async def settled(self) -> None:
        """Waits until nodes and release are well again: what a test that disturbed them must leave behind."""
        self.kubectl("wait", "node", "--all", "--for=condition=Ready", "--timeout=120s", timeout=150)
        namespace = self.release.namespace
        for workload in self.kubectl("get", "deployments,daemonsets", "-n", namespace, "-o", "name").split():
            self.kubectl("rollout", "status", workload, "-n", namespace, "--timeout=120s", timeout=150)

        async def led() -> bool:
            return self.leader() in self.system_pods("operator")

        await self.until(led, "an operator leads", timeout=60)

    async def node_ready(self, node: str, wanted: bool = True, timeout: float = 120) -> None:
        """Waits until the node is Ready, or is not."""

        async def probe() -> bool:
            return (condition(self.get("node", node), "Ready").get("status") == "True") is wanted

        await self.until(probe, f"node {node} is {'Ready' if wanted else 'not Ready'}", timeout)

    # --- figures -----------------------------------------------------------------------------------------------------

    def figure(self, name: str, value: float, unit: str, how: str = "") -> None:
        """Adds a measured figure to the table that the run prints at its end."""
        line = json.dumps({"name": name, "value": value, "unit": unit, "how": how, "at": time.time()})
        with (self.artifacts / "figures.jsonl").open("a") as out:
            out.write(line + "\n")
