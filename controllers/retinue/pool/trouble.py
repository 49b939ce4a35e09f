"""What is wrong with the instances of a pool: the condition Degraded, and an event when it begins."""

from collections.abc import Iterable, Mapping

from retinue.api.pool import InstancePhase, InstanceStatus
from retinue.conditions import ConditionType, Finding, Reason, epoch_or_none, timestamp
from retinue.plan import Event, EventType
from retinue.pool.containers import Obstacle
from retinue.pool.instances import Instance
from retinue.pool.snapshot import PoolSnapshot
from retinue.rollout.backoff import restart_delay


def message_of(instance: Instance) -> str | None:
    """What an instance's record says of a broken device, or of what keeps its containers from starting.

    The kubelet words the cause anew at each attempt; the first wording stays, so that waiting writes nothing.
    """
    if instance.unhealthy is not None:
        return instance.unhealthy
    if instance.obstacle is None:
        return None
    before = instance.remembered.message if instance.remembered else None
    return before if _same(before, instance.obstacle) else instance.obstacle.text


def degraded(records: Iterable[InstanceStatus], restarted: Mapping[str, str], instances: Iterable[Instance]) -> Finding:
    """Whether an instance needs attention, which, and what to do; the first of those that do not serve."""
    found, known = list(records), list(instances)
    messages = {record.name: record.message for record in found}
    for instance in known:
        if instance.obstacle is not None:
            message = f"{instance.name} does not start: {messages.get(instance.name)}; {instance.obstacle.remedy}"
            return Finding(ConditionType.DEGRADED, True, instance.obstacle.reason, message)
    failing = [r for r in found if r.restarts > 0 and r.phase != InstancePhase.READY]
    if failing:
        return Finding(ConditionType.DEGRADED, True, Reason.INSTANCE_FAILED, _failing(failing[0], restarted))
    broken = [f"{instance.name}: {instance.unhealthy}" for instance in known if instance.unhealthy]
    if broken:
        more = f" (and {len(broken) - 1} more instances)" if len(broken) > 1 else ""
        message = f"{broken[0]}{more}; it is replaced by another as spec.rollout allows, and the node needs repair"
        return Finding(ConditionType.DEGRADED, True, Reason.DEVICE_UNHEALTHY, message)
    return Finding(ConditionType.DEGRADED, False, Reason.HEALTHY, "no instance is failing")


def trouble_events(snapshot: PoolSnapshot, instances: Iterable[Instance]) -> tuple[Event, ...]:
    """One event per instance whose devices broke, or that was found unable to start, since the last reconcile."""
    before = {record.name: record.message for record in snapshot.pool.status.instances}
    events = []
    for instance in instances:
        if instance.unhealthy is not None and before.get(instance.name) != instance.unhealthy:
            events.append(_warning(Reason.DEVICE_UNHEALTHY, f"{instance.name}: {instance.unhealthy}"))
        obstacle = instance.obstacle
        if obstacle is not None and not _same(before.get(instance.name), obstacle):
            events.append(_warning(obstacle.reason, f"{instance.name} does not start: {obstacle.text}"))
    return tuple(events)


def _failing(record: InstanceStatus, restarted: Mapping[str, str]) -> str:
    why = restarted.get(record.name) or record.message or "it has not become ready since its last restart"
    times = "once" if record.restarts == 1 else f"{record.restarts} times"
    delay = restart_delay(record.restarts)
    last = epoch_or_none(record.last_restart)
    waits = record.phase == InstancePhase.PENDING and delay and last is not None
    due = f"; next start at {timestamp(last + delay)}" if waits and last is not None else ""
    remedy = "correct spec.engine or take the last change of the spec back"
    return f"{record.name} was restarted {times}: {why}{due}; if it goes on, {remedy}"


def _same(message: str | None, obstacle: Obstacle) -> bool:
    return message is not None and message.startswith(obstacle.what)


def _warning(reason: Reason, message: str) -> Event:
    return Event(EventType.WARNING, reason.value, message)
