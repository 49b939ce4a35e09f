"""Plans a NodeClass: nothing to apply, only a status that says which nodes it has and what is free on them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from retinue.api import NodeClass
from retinue.api.nodeclass import DomainStatus, NodeClassStatus
from retinue.catalog.facts import TopologyLevel
from retinue.catalog.load import UnknownPreset
from retinue.conditions import ConditionType, Finding, Reason, merge
from retinue.nodeclass.nodes import Hold, Node
from retinue.nodeclass.resolve import ResolvedClass, resolve
from retinue.placement.capacity import Free, free_capacity
from retinue.placement.members import domain_of
from retinue.plan import Plan
from retinue.transitions import transitions

MAX_DOMAINS = 256
_GOOD = {ConditionType.READY: True, ConditionType.VALID: True, ConditionType.DEGRADED: False}


@dataclass(frozen=True)
class NodeClassSnapshot:
    """One class, all nodes, what pods hold, and the selectors of the other classes by name."""

    node_class: NodeClass
    nodes: tuple[Node, ...]
    holds: Collection[Hold]
    others: Mapping[str, ResolvedClass]


def plan(snapshot: NodeClassSnapshot, now: float) -> Plan:
    """The class's status; `now` in seconds since the epoch."""
    object_ = snapshot.node_class
    try:
        class_ = resolve(object_.metadata.name, object_.spec, object_.metadata.annotations)
    except UnknownPreset as error:
        return _plan_invalid(object_, f"spec.preset: {error}", now)
    matching = tuple(node for node in snapshot.nodes if class_.matches(node))
    counted = class_.counted or ""
    free = free_capacity(class_, snapshot.nodes, snapshot.holds)
    devices = sum(class_.devices_on(node) for node in matching)
    overlaps = _overlaps(matching, snapshot.others)
    findings = _findings(class_, matching, devices, overlaps)
    return Plan(
        status=NodeClassStatus(
            observed_generation=object_.metadata.generation,
            nodes=len(matching),
            ready_nodes=sum(node.ready for node in matching),
            devices=devices,
            free_devices=sum(max(0, member.free.get(counted, 0)) for member in free),
            domains=_domains(class_, matching, free),
            overlaps=sorted(overlaps),
            conditions=merge(object_.status.conditions, findings, object_.metadata.generation, now),
        ).to_wire(),
        events=transitions(object_.status.conditions, findings, _GOOD),
    )


def _plan_invalid(object_: NodeClass, message: str, now: float) -> Plan:
    findings = (
        Finding(ConditionType.VALID, False, Reason.UNKNOWN_PRESET, message),
        Finding(ConditionType.READY, False, Reason.UNKNOWN_PRESET, message),
    )
    generation = object_.metadata.generation
    status = NodeClassStatus(
        observed_generation=generation,
        conditions=merge(object_.status.conditions, findings, generation, now),
    )
    return Plan(status=status.to_wire(), events=transitions(object_.status.conditions, findings, _GOOD))


def _overlaps(matching: tuple[Node, ...], others: Mapping[str, ResolvedClass]) -> set[str]:
    return {name for name, other in others.items() if any(other.matches(node) for node in matching)}


def _findings(
    class_: ResolvedClass, matching: tuple[Node, ...], devices: int, overlaps: set[str]
) -> tuple[Finding, ...]:
    findings = [_ready(class_, matching, devices), Finding(ConditionType.VALID, True, Reason.ACCEPTED, "")]
    if overlaps:
        names = ", ".join(sorted(overlaps))
        message = f"some nodes also belong to {names}: make the nodeSelectors disjoint, or free devices count twice"
        findings.append(Finding(ConditionType.DEGRADED, True, Reason.CLASSES_OVERLAP, message))
    return tuple(findings)


def _ready(class_: ResolvedClass, matching: tuple[Node, ...], devices: int) -> Finding:
    selector = ",".join(f"{key}={value}" for key, value in sorted(class_.node_selector.items()))
    if not matching:
        message = f"no node has the labels {selector}: label the nodes or correct spec.nodeSelector"
        return Finding(ConditionType.READY, False, Reason.NO_NODES, message)
    if not any(node.usable for node in matching):
        message = f"none of the {len(matching)} nodes is Ready and schedulable: look at kubectl get nodes -l {selector}"
        return Finding(ConditionType.READY, False, Reason.NO_READY_NODES, message)
    if class_.resource is not None and devices == 0:
        message = (
            f"no node offers {class_.resource}: check that the device plugin runs there, or correct "
            f"spec.devices.extendedResource"
        )
        return Finding(ConditionType.READY, False, Reason.DEVICES_MISSING, message)
    usable = sum(node.usable for node in matching)
    return Finding(ConditionType.READY, True, Reason.NODES_FOUND, f"{usable} of {len(matching)} nodes are usable")


def _domains(class_: ResolvedClass, matching: tuple[Node, ...], free: tuple[Free, ...]) -> list[DomainStatus]:
    counted = class_.counted or ""
    free_of = {member.node.name: max(0, member.free.get(counted, 0)) for member in free}
    return [domain for level in class_.topology for domain in _level_domains(class_, level, matching, free_of)][
        :MAX_DOMAINS
    ]


def _level_domains(
    class_: ResolvedClass, level: TopologyLevel, nodes: tuple[Node, ...], free_of: Mapping[str, int]
) -> list[DomainStatus]:
    members: dict[str, list[Node]] = {}
    for node in nodes:
        if any(key in node.labels for key in level.keys):
            members.setdefault(domain_of(node, level), []).append(node)
    return [
        DomainStatus(
            level=level.level,
            name=name,
            nodes=len(nodes_),
            ready_nodes=sum(node.ready for node in nodes_),
            devices=sum(class_.devices_on(node) for node in nodes_),
            free_devices=sum(free_of.get(node.name, 0) for node in nodes_),
        )
        for name, nodes_ in sorted(members.items())
    ]
