"""The status of a pool: counts, instances, conditions, and the events that tell of changes between two reconciles."""

from collections.abc import Iterable, Mapping

from retinue.api import labels
from retinue.api.pool import InstancePhase, InstanceStatus, PoolStatus
from retinue.api.units import format_duration, format_share
from retinue.conditions import ConditionType, Finding, Reason, find, merge, prometheus_answers, timestamp
from retinue.placement.pack import NoFit
from retinue.plan import Event, EventType
from retinue.pool.admission import Admission
from retinue.pool.instances import Instance
from retinue.pool.snapshot import PoolSnapshot
from retinue.pool.trouble import degraded, message_of, trouble_events
from retinue.rollout.backoff import forgiven


def pool_status(
    snapshot: PoolSnapshot,
    admission: Admission,
    instances: Iterable[Instance],
    revision: str,
    restarted: Mapping[str, str],
    removed: Iterable[str],
    drained: Iterable[str],
    unplaced: Iterable[NoFit],
    now: float,
) -> tuple[PoolStatus, tuple[Event, ...]]:
    """The status after this plan, and events about what has changed since the last one."""
    pool = snapshot.pool
    gone, leaving = set(removed), set(drained)
    known = [i for i in instances if i.phase != InstancePhase.GONE and i.name not in gone]
    records = [_record(i, restarted, leaving, snapshot, now) for i in known]
    ready = [r for r in records if r.phase == InstancePhase.READY]
    live = [r for r in records if r.phase != InstancePhase.DRAINING]
    updated = [r for r in live if r.revision == revision]
    shape = next(iter(admission.shapes.values()), None)
    metrics = snapshot.metrics
    findings = [
        admission.valid,
        admission.cache,
        _placed(snapshot, admission, list(unplaced), known),
        _scaled(snapshot, live, ready, records),
        _progressing(live, updated, revision),
        degraded(records, restarted, known),
        *_metrics(snapshot),
    ]
    findings.append(_ready(snapshot, admission, ready, findings))
    status = PoolStatus(
        observed_generation=pool.metadata.generation,
        replicas=len(live),
        ready_replicas=len(ready),
        starting_replicas=len(live) - len(ready),
        draining_replicas=len(records) - len(live),
        updated_replicas=len(updated),
        selector=_selector(snapshot),
        revision=revision,
        devices_per_instance=None if shape is None else shape.pods * shape.devices_per_pod,
        kv_capacity_tokens=None if shape is None else shape.kv_capacity_tokens,
        instances=records,
        hit_rate=format_share(metrics.hit_rate if metrics else None),
        ttft_p95=_duration(metrics.ttft_p95 if metrics else None),
        itl_p95=_duration(metrics.itl_p95 if metrics else None),
        conditions=merge(pool.status.conditions, findings, pool.metadata.generation, now),
    )
    return status, (*trouble_events(snapshot, known), *_events(snapshot, status, findings))


def _record(
    instance: Instance, restarted: Mapping[str, str], drained: set[str], snapshot: PoolSnapshot, now: float
) -> InstanceStatus:
    phase, restarts, last = instance.phase, instance.restarts, instance.last_restart
    message = None
    if instance.name in restarted:
        phase, restarts, last, message = InstancePhase.PENDING, restarts + 1, now, restarted[instance.name]
    elif instance.unhealthy is not None or instance.obstacle is not None:
        message = message_of(instance)
    elif restarts > 0 and phase != InstancePhase.READY and instance.remembered is not None:
        message = instance.remembered.message  # Its pods are gone: nobody else can say why.
    elif forgiven(restarts, last, phase == InstancePhase.READY, now):
        restarts, last = 0, 0.0
    if instance.name in drained:
        phase = InstancePhase.DRAINING
    sessions = snapshot.metrics.sessions.get(instance.name) if snapshot.metrics else None
    return InstanceStatus(
        name=instance.name,
        phase=phase,
        revision=instance.revision,
        node_class=instance.node_class or None,
        domain=instance.domain,
        pods=len(instance.pods),
        ready_pods=instance.ready_pods,
        restarts=restarts,
        last_restart=timestamp(last) if last else None,
        sessions=sessions,
        message=message[:512] if message else None,
    )


def _selector(snapshot: PoolSnapshot) -> str:
    pairs = {
        labels.MANAGED_BY: labels.RETINUE,
        labels.POOL: snapshot.pool.metadata.name,
        labels.POOL_KIND: snapshot.kind.value,
        labels.RANK: "0",
    }
    return ",".join(f"{key}={value}" for key, value in sorted(pairs.items()))


def _placed(snapshot: PoolSnapshot, admission: Admission, unplaced: list[NoFit], instances: list[Instance]) -> Finding:
    if not admission.shapes:
        return Finding(ConditionType.PLACED, None, Reason.INVALID_SPEC, "the spec is not valid, so nothing is placed")
    if unplaced:
        more = f" ({len(unplaced)} instances wait)" if len(unplaced) > 1 else ""
        return Finding(ConditionType.PLACED, False, Reason.NO_FIT, unplaced[0].message + more)
    placed = [instance for instance in instances if instance.pods and not any(pod.gated for pod in instance.pods)]
    if len(placed) < snapshot.pool.spec.replicas:
        message = f"{len(placed)} of {snapshot.pool.spec.replicas} wanted instances are placed so far"
        return Finding(ConditionType.PLACED, None, Reason.STARTING, message)
    return Finding(ConditionType.PLACED, True, Reason.ALL_PLACED, f"{len(placed)} instances are placed")


def _scaled(
    snapshot: PoolSnapshot, live: list[InstanceStatus], ready: list[InstanceStatus], records: list[InstanceStatus]
) -> Finding:
    wanted, draining = snapshot.pool.spec.replicas, len(records) - len(live)
    if len(live) > wanted or draining:
        message = f"{len(live)} of {wanted} wanted instances run, {draining} drain"
        return Finding(ConditionType.SCALED, False, Reason.SCALING_DOWN, message)
    if len(ready) < wanted:
        message = f"{len(ready)} of {wanted} wanted instances are ready, {len(live) - len(ready)} start"
        return Finding(ConditionType.SCALED, False, Reason.SCALING_UP, message)
    return Finding(ConditionType.SCALED, True, Reason.AS_DESIRED, f"{wanted} instances as wanted")


def _progressing(live: list[InstanceStatus], updated: list[InstanceStatus], revision: str) -> Finding:
    if len(updated) < len(live):
        message = f"{len(updated)} of {len(live)} instances have revision {revision}"
        return Finding(ConditionType.PROGRESSING, True, Reason.ROLLING_OUT, message)
    return Finding(ConditionType.PROGRESSING, False, Reason.AS_DESIRED, f"all instances have revision {revision}")


def _metrics(snapshot: PoolSnapshot) -> tuple[Finding, ...]:
    return () if snapshot.metrics is None else (prometheus_answers(snapshot.metrics.error),)


def _ready(
    snapshot: PoolSnapshot, admission: Admission, ready: list[InstanceStatus], others: Iterable[Finding]
) -> Finding:
    """Ready means that the pool serves; `Scaled` says whether it has all the instances that it wants.

    A pool that does not serve gives the reason of the condition that keeps it from serving.
    """
    wanted = snapshot.pool.spec.replicas
    if not admission.valid.status:
        return Finding(ConditionType.READY, False, admission.valid.reason, admission.valid.message)
    if not ready and wanted > 0:
        if not admission.connected:
            return Finding(ConditionType.READY, False, admission.cache.reason, admission.cache.message)
        for bad in ((ConditionType.PLACED, False), (ConditionType.DEGRADED, True)):
            for finding in others:
                if (finding.type, finding.status) == bad:
                    return Finding(ConditionType.READY, False, finding.reason, finding.message)
        return Finding(ConditionType.READY, False, Reason.STARTING, f"none of {wanted} instances is ready yet")
    message = f"{len(ready)} of {wanted} wanted instances are ready"
    return Finding(ConditionType.READY, True, Reason.HEALTHY if len(ready) >= wanted else Reason.SCALING_UP, message)


def _duration(value: float | None) -> str | None:
    return None if value is None else format_duration(value)


def _events(snapshot: PoolSnapshot, status: PoolStatus, findings: Iterable[Finding]) -> tuple[Event, ...]:
    """One event per instance that became ready, and per condition that turned bad."""
    before = {record.name: record.phase for record in snapshot.pool.status.instances}
    events = [
        Event(EventType.NORMAL, Reason.INSTANCE_READY.value, f"{record.name} is ready")
        for record in status.instances
        if record.phase == InstancePhase.READY and before.get(record.name) != InstancePhase.READY
    ]
    bad = {ConditionType.VALID: "False", ConditionType.PLACED: "False", ConditionType.CACHE_CONNECTED: "False"}
    for finding in findings:
        old = find(snapshot.pool.status.conditions, finding.type)
        if bad.get(finding.type) == finding.status_text and (old is None or old.status != finding.status_text):
            events.append(Event(EventType.WARNING, finding.reason.value, finding.message))
    return tuple(events)
