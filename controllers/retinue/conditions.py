"""Conditions and their reasons: one vocabulary for conditions, events, log lines and metric labels."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from retinue.api.types import Condition


class ConditionType(StrEnum):
    READY = "Ready"
    PLACED = "Placed"
    CACHE_CONNECTED = "CacheConnected"
    SCALED = "Scaled"
    SCALING_LIMITED = "ScalingLimited"
    METRICS_FRESH = "MetricsFresh"
    PROGRESSING = "Progressing"
    DEGRADED = "Degraded"
    VALID = "Valid"


class Reason(StrEnum):
    """Why a condition has its status, why an event was posted, why a decision was made."""

    # all kinds
    AS_DESIRED = "AsDesired"
    ACCEPTED = "Accepted"
    INVALID_SPEC = "InvalidSpec"
    NOT_SUPPORTED = "NotSupported"
    UNKNOWN_PRESET = "UnknownPreset"
    UNKNOWN_MODEL = "UnknownModel"
    DELETING = "Deleting"
    # node classes
    NODES_FOUND = "NodesFound"
    NO_NODES = "NoNodes"
    NO_READY_NODES = "NoReadyNodes"
    CLASSES_OVERLAP = "ClassesOverlap"
    DEVICES_MISSING = "DevicesMissing"
    # pools
    ALL_PLACED = "AllPlaced"
    NO_FIT = "NoFit"
    NODE_CLASS_MISSING = "NodeClassMissing"
    MODEL_DOES_NOT_FIT = "ModelDoesNotFit"
    TIER_MISSING = "TierMissing"
    TIER_NOT_READY = "TierNotReady"
    TIERS_CONNECTED = "TiersConnected"
    NO_TIERS = "NoTiers"
    HOST_MEMORY_TOO_SMALL = "HostMemoryTooSmall"
    SCALING_UP = "ScalingUp"
    SCALING_DOWN = "ScalingDown"
    ROLLING_OUT = "RollingOut"
    STARTING = "Starting"
    DRAINING = "Draining"
    DRAINED = "Drained"
    DRAIN_TIMED_OUT = "DrainTimedOut"
    INSTANCE_CREATED = "InstanceCreated"
    INSTANCE_PLACED = "InstancePlaced"
    INSTANCE_READY = "InstanceReady"
    INSTANCE_FAILED = "InstanceFailed"
    INSTANCE_RESTARTED = "InstanceRestarted"
    INSTANCE_BACK_OFF = "InstanceBackOff"
    INSTANCE_REMOVED = "InstanceRemoved"
    HEALTHY = "Healthy"
    # tiers
    SERVERS_READY = "ServersReady"
    SERVERS_STARTING = "ServersStarting"
    MEMBERS_READY = "MembersReady"
    NO_MEMBERS = "NoMembers"
    TIER_CYCLE = "TierCycle"
    NEXT_TIER_MISSING = "NextTierMissing"
    # agent pools
    ROLES_READY = "RolesReady"
    ROLES_NOT_READY = "RolesNotReady"
    POOL_MISSING = "PoolMissing"
    NAME_TAKEN = "NameTaken"
    TOOLS_NOT_MANAGED = "ToolsNotManaged"
    # metrics and autoscaling
    METRICS_CURRENT = "MetricsCurrent"
    METRICS_MISSING = "MetricsMissing"
    METRICS_STALE = "MetricsStale"
    PROMETHEUS_UNREACHABLE = "PrometheusUnreachable"
    AUTOSCALING_OFF = "AutoscalingOff"
    DRY_RUN = "DryRun"
    NOT_LIMITED = "NotLimited"
    AT_MAXIMUM = "AtMaximum"
    AT_MINIMUM = "AtMinimum"
    BUDGET_EXHAUSTED = "BudgetExhausted"
    NO_CAPACITY = "NoCapacity"
    PREFILL_WORK = "PrefillWork"
    PREFILL_BACKLOG = "PrefillBacklog"
    CONCURRENCY = "Concurrency"
    KV_MEMORY = "KVMemory"
    MIXED_LOAD = "MixedLoad"
    CACHE_FLOOR = "CacheFloor"
    TTFT_MISSED = "TTFTMissed"
    ITL_MISSED = "ITLMissed"
    SESSION_CACHE = "SessionCache"
    EVICTED_TOO_EARLY = "EvictedTooEarly"
    LOAD_FELL = "LoadFell"
    WITHIN_GOALS = "WithinGoals"
    NOTHING_READY = "NothingReady"
    PARTLY_MEASURED = "PartlyMeasured"
    BACKLOG_TOO_OLD = "BacklogTooOld"
    LATENCY_TOO_HIGH = "LatencyTooHigh"
    STABILIZING = "Stabilizing"
    COST_UNKNOWN = "CostUnknown"


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


def timestamp(now: float) -> str:
    """RFC 3339 in UTC with whole seconds, as Kubernetes writes times; `now` in seconds since the epoch."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def epoch(text: str) -> float:
    """Seconds since the epoch of an RFC 3339 time such as the API server writes."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


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
