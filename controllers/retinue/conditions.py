"""Conditions and their reasons: one vocabulary for conditions, events, log lines and metric labels."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Self

from retinue.api.types import Condition


class _Explained(StrEnum):
    """An enum whose members carry a sentence about what they mean, for the reference."""

    _value_: str
    meaning: str

    # The default is for look-ups by value, such as Reason("NoFit"), which type checkers take for this call.
    def __new__(cls, value: str, meaning: str = "") -> Self:
        member = str.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member


class ConditionType(_Explained):
    """What a condition is about; the same types on all kinds where they apply."""

    READY = (
        "Ready",
        "True when the object does its work; otherwise its reason repeats the condition that stands in the way.",
    )
    PLACED = "Placed", "Whether every wanted instance has its place on nodes."
    CACHE_CONNECTED = (
        "CacheConnected",
        "Whether the tiers of spec.kvCacheTiers can be used; new instances wait for them.",
    )
    SCALED = "Scaled", "Whether as many instances are ready as spec.replicas asks for."
    SCALING_LIMITED = "ScalingLimited", "True when the load asks for more than bounds, free devices or budget allow."
    METRICS_FRESH = (
        "MetricsFresh",
        "Whether the numbers behind status and decisions are fresh; while they are not, nothing shrinks.",
    )
    PROGRESSING = "Progressing", "True while instances of an older revision are being replaced."
    DEGRADED = (
        "Degraded",
        "True when something needs attention although the object may work; also when a write was refused.",
    )
    VALID = "Valid", "Whether this version can act on the spec."


class Reason(_Explained):
    """Why a condition has its status, why an event was posted, why a decision was made."""

    # all kinds
    AS_DESIRED = "AsDesired", "As many instances as wanted, all of the current revision."
    ACCEPTED = "Accepted", "The spec was checked and can be acted on."
    INVALID_SPEC = "InvalidSpec", "Nothing is placed, because condition Valid is False."
    NOT_SUPPORTED = (
        "NotSupported",
        "The API has this field or value, this version does not act on it: the message says what to set instead.",
    )
    UNKNOWN_PRESET = "UnknownPreset", "spec.preset is not in the catalogue; the message names the nearest."
    UNKNOWN_MODEL = "UnknownModel", "spec.model.name is not in the catalogue; the message names the nearest."
    UNKNOWN_OPTION = "UnknownOption", "spec.engine.args has an option that the engine does not know."
    WRONG_POD_TEMPLATE = (
        "WrongPodTemplate",
        "spec.podTemplate has a field of the wrong type, so it cannot be merged into a pod; the message names it.",
    )
    # node classes
    NODES_FOUND = "NodesFound", "The class has usable nodes."
    NO_NODES = "NoNodes", "No node carries the class's labels."
    NO_READY_NODES = "NoReadyNodes", "Nodes of the class exist, but none is Ready and schedulable."
    CLASSES_OVERLAP = (
        "ClassesOverlap",
        "Nodes belong to several classes, so free devices count twice: make the nodeSelectors disjoint.",
    )
    DEVICES_MISSING = "DevicesMissing", "No node of the class offers its devices: look at the device plugin."
    # pools
    ALL_PLACED = "AllPlaced", "Every wanted instance has its place."
    NO_FIT = "NoFit", "No domain has room for an instance; the message says what is free and what would help."
    NODE_CLASS_MISSING = "NodeClassMissing", "A NodeClass that the spec names does not exist or is not valid."
    MODEL_DOES_NOT_FIT = (
        "ModelDoesNotFit",
        "No class of the list can hold an instance: model unknown, too little memory, or devices that do not divide.",
    )
    TIER_MISSING = "TierMissing", "A KVCacheTier of spec.kvCacheTiers does not exist."
    TIER_NOT_READY = (
        "TierNotReady",
        "A KVCacheTier of spec.kvCacheTiers is not valid yet, or none of its servers is ready.",
    )
    TIERS_CONNECTED = "TiersConnected", "All tiers of spec.kvCacheTiers can be used."
    NO_TIERS = "NoTiers", "spec.kvCacheTiers is empty."
    HOST_MEMORY_TOO_SMALL = "HostMemoryTooSmall", "No node has as much memory as one member of the tier asks for."
    SCALING_UP = "ScalingUp", "More instances are wanted than are ready; on an event or decision: replicas grow."
    SCALING_DOWN = (
        "ScalingDown",
        "More instances run than are wanted, or some drain; on an event or decision: replicas shrink.",
    )
    ROLLING_OUT = "RollingOut", "Instances of an older revision are being replaced."
    STARTING = "Starting", "Instances are being placed and started."
    DRAINING = (
        "Draining",
        "An instance finishes what it serves before it goes; on a decision: wait for that before shrinking further.",
    )
    DRAINED = "Drained", "An instance finished what it served and was deleted."
    DRAIN_TIMED_OUT = "DrainTimedOut", "An instance was deleted at spec.drain.timeout with requests still in flight."
    INSTANCE_CREATED = "InstanceCreated", "The pods of a new instance were created."
    INSTANCE_PLACED = "InstancePlaced", "An instance got its class and domain, and its pods may be scheduled."
    INSTANCE_READY = "InstanceReady", "An instance serves."
    INSTANCE_FAILED = "InstanceFailed", "An instance was restarted and has not become ready since."
    INSTANCE_RESTARTED = (
        "InstanceRestarted",
        "A pod failed, so its whole instance is started again, after a growing wait.",
    )
    IMAGE_NOT_PULLED = (
        "ImageNotPulled",
        "A node cannot get the image of an instance; the kubelet tries again, and an older revision serves on.",
    )
    CONTAINER_NOT_CREATED = (
        "ContainerNotCreated",
        "A container of an instance cannot be created, for example because a Secret is missing; it is tried again.",
    )
    DEVICE_UNHEALTHY = (
        "DeviceUnhealthy",
        "An instance holds a device that its kubelet reports as broken: another one is made, then it drains.",
    )
    INSTANCE_REMOVED = "InstanceRemoved", "An instance that did not serve was deleted."
    HEALTHY = "Healthy", "The pool serves, no instance is failing."
    # tiers
    SERVERS_READY = "ServersReady", "All servers of the tier are ready."
    SERVERS_STARTING = "ServersStarting", "Some servers of the tier are not ready yet."
    MEMBERS_READY = "MembersReady", "The engines that name the tier hold it."
    NO_MEMBERS = "NoMembers", "No pool names the tier yet."
    TIER_CYCLE = "TierCycle", "spec.nextTier leads back to the tier: break the cycle."
    NEXT_TIER_MISSING = "NextTierMissing", "The KVCacheTier of spec.nextTier does not exist."
    # agent pools
    ROLES_READY = "RolesReady", "Every role is served."
    ROLES_NOT_READY = "RolesNotReady", "A role is not served; the message repeats what its pool says."
    NAME_TAKEN = (
        "NameTaken",
        "An object of the name that is needed belongs to somebody else: rename the AgentPool or delete the object.",
    )
    TOOLS_NOT_MANAGED = "ToolsNotManaged", "spec.tools is stored, but this version runs no sandboxes."
    # metrics and autoscaling
    METRICS_CURRENT = "MetricsCurrent", "Every number that is needed is fresh."
    METRICS_MISSING = "MetricsMissing", "A number that is needed is missing; what depends on it does not shrink."
    METRICS_STALE = (
        "MetricsStale",
        "A number that is needed is old, the last good one counts; what depends on it does not shrink.",
    )
    PROMETHEUS_UNREACHABLE = (
        "PrometheusUnreachable",
        "Prometheus does not answer: check its address, network policies and the message.",
    )
    AUTOSCALING_OFF = "AutoscalingOff", "autoscaling.mode is Off: replicas belong to the user."
    NOT_LIMITED = "NotLimited", "Every pool and tier may have what the load asks for."
    AT_MAXIMUM = "AtMaximum", "replicas.max is reached: raise it to let the load have more."
    AT_MINIMUM = "AtMinimum", "Less would do, but replicas.min holds."
    BUDGET_EXHAUSTED = "BudgetExhausted", "budget.maxCostPerHour does not allow more."
    NO_CAPACITY = "NoCapacity", "There are no free devices for more: add nodes or allow more node classes."
    PREFILL_WORK = "PrefillWork", "The uncached prompt tokens that arrive need this many prefill instances."
    PREFILL_BACKLOG = "PrefillBacklog", "Queued prompt tokens must be worked off as well."
    CONCURRENCY = "Concurrency", "The requests that decode at once need this many instances."
    KV_MEMORY = "KVMemory", "The KV cache of the requests that decode at once needs this many instances."
    MIXED_LOAD = "MixedLoad", "Prefill and decode load of an aggregated pool together need this many instances."
    CACHE_FLOOR = "CacheFloor", "Fewer instances could not hold the contexts of the open sessions."
    TTFT_MISSED = "TTFTMissed", "Time to first token misses its goal, mostly in this pool's stage."
    ITL_MISSED = "ITLMissed", "The time between tokens misses its goal."
    SESSION_CACHE = "SessionCache", "The contexts of the open sessions need this many tier servers."
    EVICTED_TOO_EARLY = "EvictedTooEarly", "The tier is full and evicts before its retention."
    LOAD_FELL = "LoadFell", "The load fell: fewer are enough."
    WITHIN_GOALS = "WithinGoals", "The size fits the load."
    NOTHING_READY = "NothingReady", "No instance is ready, so nothing is measured and nothing shrinks."
    PARTLY_MEASURED = "PartlyMeasured", "Some ready instances report no metrics, so nothing shrinks."
    BACKLOG_TOO_OLD = "BacklogTooOld", "Requests have waited in the queue for too long to shrink now."
    LATENCY_TOO_HIGH = "LatencyTooHigh", "Latency is too close to its goal to shrink now."
    STABILIZING = (
        "Stabilizing",
        "Fewer would do, but the waits of autoscaling.scaleDown, or that after growth, are not over.",
    )
    COST_UNKNOWN = (
        "CostUnknown",
        "A budget is set and the cost of one more is unknown: set costPerNodeHour on its NodeClass.",
    )


@dataclass(frozen=True)
class Finding:
    """What a check found out about one condition type."""

    type: ConditionType
    status: bool | None
    reason: Reason
    message: str

    @property
    def status_text(self) -> str:
        return {True: "True", False: "False", None: "Unknown"}[self.status]


def prometheus_answers(error: str | None) -> Finding:
    """Whether metrics are fresh, for an object that needs no more than an answer; `error` says why there was none."""
    if error is not None:
        return Finding(ConditionType.METRICS_FRESH, False, Reason.PROMETHEUS_UNREACHABLE, error)
    return Finding(ConditionType.METRICS_FRESH, True, Reason.METRICS_CURRENT, "Prometheus answers")


def timestamp(now: float) -> str:
    """RFC 3339 in UTC with whole seconds, as Kubernetes writes times; `now` in seconds since the epoch."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def epoch(text: str) -> float:
    """Seconds since the epoch of an RFC 3339 time such as the API server writes."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def epoch_or_none(text: str | None) -> float | None:
    """The same for what anybody may have written: None where it is no time."""
    try:
        return epoch(text) if text else None
    except ValueError:
        return None


def merge(previous: Iterable[Condition], findings: Iterable[Finding], generation: int, now: float) -> list[Condition]:
    """The new list of conditions, ordered by type: only a flip of the status moves lastTransitionTime.

    Types without a finding are dropped: they do not apply any more.
    """
    before = {condition.type: condition for condition in previous}
    merged: list[Condition] = []
    for finding in findings:
        old = before.get(finding.type)
        flipped = old is None or old.status != finding.status_text
        merged.append(
            Condition(
                type=finding.type,
                status=finding.status_text,
                reason=finding.reason,
                message=finding.message[:4096],
                observed_generation=generation,
                last_transition_time=timestamp(now) if old is None or flipped else old.last_transition_time,
            )
        )
    return sorted(merged, key=lambda condition: condition.type)


def find(conditions: Iterable[Condition], type_: ConditionType) -> Condition | None:
    """The condition of that type, or None."""
    return next((condition for condition in conditions if condition.type == type_), None)
