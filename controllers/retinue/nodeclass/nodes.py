"""Nodes and the pods that hold their devices, as plain values read from the API server's objects."""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

from retinue.api import labels
from retinue.api.types import Toleration, TolerationOperator
from retinue.api.units import quantity
from retinue.conditions import epoch
from retinue.nodeclass.claims import ClaimTemplate, template_names
from retinue.plan import Manifest

_TERMINAL = ("Succeeded", "Failed")
NO_TEMPLATES: Mapping[tuple[str, str], ClaimTemplate] = MappingProxyType({})


@dataclass(frozen=True)
class Taint:
    key: str
    effect: str
    value: str = ""


@dataclass(frozen=True)
class Node:
    """A node: labels, taints, readiness and what it can give to pods (whole units; memory in bytes)."""

    name: str
    labels: Mapping[str, str]
    ready: bool
    schedulable: bool
    taints: tuple[Taint, ...] = ()
    not_ready_since: float | None = None
    """Seconds since the epoch; None for a node that is ready, or that does not say since when it is not."""
    allocatable: Mapping[str, int] = field(default_factory=dict)

    @property
    def usable(self) -> bool:
        return self.ready and self.schedulable


class Nodes(tuple[Node, ...]):
    """All nodes, with room for what is worked out from them: plans find it again while no node has changed."""

    @cached_property
    def by_name(self) -> Mapping[str, Node]:
        """Nodes by name."""
        return {node.name: node for node in self}

    @cached_property
    def memo(self) -> dict[Hashable, Any]:
        """Views of exactly these nodes by whatever tells them apart."""
        return {}


def by_name(nodes: Iterable[Node]) -> Mapping[str, Node]:
    """Nodes by name."""
    return nodes.by_name if isinstance(nodes, Nodes) else {node.name: node for node in nodes}


@dataclass(frozen=True)
class Hold:
    """What one pod takes from a node, or (node is None) from a domain that was promised to it."""

    pod: str
    node: str | None
    node_class: str
    domain: str | None
    requests: Mapping[str, int]


def node_from(manifest: Manifest) -> Node:
    """A Node from the wire. Quantities that cannot be read count as absent, never as zero free."""
    meta, spec, status = manifest["metadata"], manifest.get("spec", {}), manifest.get("status", {})
    condition: Manifest = next((c for c in status.get("conditions", []) if c.get("type") == "Ready"), {})
    ready = condition.get("status") == "True"
    since = condition.get("lastTransitionTime")
    return Node(
        name=meta["name"],
        labels=meta.get("labels", {}),
        ready=ready,
        schedulable=not spec.get("unschedulable", False),
        not_ready_since=epoch(since) if since and not ready else None,
        taints=tuple(Taint(t["key"], t["effect"], t.get("value", "")) for t in spec.get("taints", [])),
        allocatable=_quantities(status.get("allocatable", {})),
    )


def is_gated(pod_spec: Manifest) -> bool:
    """Whether a pod waits behind our placement gate; gates of others do not count."""
    return any(gate["name"] == labels.PLACEMENT_GATE for gate in pod_spec.get("schedulingGates", []))


def hold_from(pod: Manifest, templates: Mapping[tuple[str, str], ClaimTemplate] = NO_TEMPLATES) -> Hold | None:
    """What a pod holds: None for one that has ended or still waits behind the placement gate.

    `templates` are the claim templates by namespace and name: they say what the pod's claims hold.
    """
    spec, meta = pod.get("spec", {}), pod["metadata"]
    if pod.get("status", {}).get("phase") in _TERMINAL or is_gated(spec):
        return None
    requests: dict[str, int] = {}
    for container in spec.get("containers", []):
        resources = container.get("resources", {})
        wanted = {**resources.get("limits", {}), **resources.get("requests", {})}
        for name, value in _quantities(wanted).items():
            requests[name] = requests.get(name, 0) + value
    for name in template_names(spec):
        template = templates.get((meta.get("namespace", ""), name))
        for key, count in template.requests.items() if template else ():
            requests[key] = requests.get(key, 0) + count
    return Hold(
        pod=f"{meta.get('namespace', '')}/{meta['name']}",
        node=spec.get("nodeName"),
        node_class=meta.get("labels", {}).get(labels.NODE_CLASS, ""),
        domain=meta.get("annotations", {}).get(labels.DOMAIN),
        requests=requests,
    )


def holds_from(pods: Iterable[Manifest], templates: Iterable[ClaimTemplate] = ()) -> tuple[Hold, ...]:
    """The holds of all pods that hold something; `templates` are all claim templates that pods may name."""
    known = {(template.namespace, template.name): template for template in templates}
    holds = (hold_from(pod, known) for pod in pods)
    return tuple(hold for hold in holds if hold is not None)


def tolerated(taints: Iterable[Taint], tolerations: Iterable[Toleration]) -> bool:
    """Whether every taint that keeps pods away is tolerated (core/v1 semantics; PreferNoSchedule never blocks)."""
    known = tuple(tolerations)
    return all(taint.effect == "PreferNoSchedule" or any(_matches(taint, t) for t in known) for taint in taints)


def _matches(taint: Taint, toleration: Toleration) -> bool:
    if toleration.effect is not None and toleration.effect != taint.effect:
        return False
    if toleration.key is None:
        return toleration.operator == TolerationOperator.EXISTS
    if toleration.key != taint.key:
        return False
    return toleration.operator == TolerationOperator.EXISTS or (toleration.value or "") == taint.value


def _quantities(raw: Mapping[str, object]) -> dict[str, int]:
    read: dict[str, int] = {}
    for name, value in raw.items():
        try:
            read[name] = quantity(str(value))
        except ValueError:
            continue
    return read
