"""What must hold at every write, whatever happens: named predicates over a change and the operator's view of it.

An operator can only be blamed for what it could know, so views come from its cache, not from the API server.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from retinue.api import AgentPool, DecodePool, PrefillPool, labels
from retinue.api.units import seconds
from retinue.plan import Manager, Manifest
from retinue.pool.drain import DRAIN_SETTLE_SECONDS
from retinue.pool.snapshot import PodView, pod_view
from retinue_operator.cache import Cache

from .api import Change
from .cluster import Cluster

_POOLS: dict[str, type[PrefillPool] | type[DecodePool]] = {"PrefillPool": PrefillPool, "DecodePool": DecodePool}
_KINDS = {"prefill": "PrefillPool", "decode": "DecodePool"}


@dataclass(frozen=True)
class Moment:
    """One change as it happens: what the operator knows, and the cluster as it is."""

    change: Change
    view: Cache
    cluster: Cluster
    metrics: str

    @property
    def by_operator(self) -> bool:
        """Whether the operator wrote it."""
        return self.change.by in set(Manager)


def an_instance_has_one_revision(moment: Moment) -> bool:
    """All pods of an instance that are not going run the same revision."""
    after = moment.change.after
    if after is None or after["kind"] != "Pod" or moment.change.before is not None:
        return True
    mates = _mates(moment.cluster.pods(), after)
    return len({view.revision for view in mates if not view.deleting}) <= 1


def a_serving_instance_ends_only_drained(moment: Moment) -> bool:
    """The operator deletes an engine that serves only unroutable, and idle or at its drain timeout."""
    if not _is_deletion(moment):
        return True
    live = moment.view.get("Pod", *_name(moment.change.manifest))
    if live is None:
        return True
    pod = pod_view(live)
    pool = _pool_of(moment, live)
    mates = _mates(moment.view.select("Pod"), live)
    whole = len(mates) == _world_size(live)
    if pool is None or not whole or not all(_healthy(view) for view in mates):
        return True
    if pod.drain_started is None or pod.routable:
        return False
    elapsed = moment.cluster.now - pod.drain_started
    idle = moment.cluster.requests.get(pod.uid, 0) == 0 and elapsed >= DRAIN_SETTLE_SECONDS
    return idle or elapsed >= seconds(pool.spec.drain.timeout)


def enough_instances_serve_on(moment: Moment) -> bool:
    """Taking an instance out of service leaves replicas - maxUnavailable, or takes none if there are fewer."""
    change = moment.change
    before, after = change.before, change.after
    if before is None or after is None or after["kind"] != "Pod" or not moment.by_operator:
        return True
    if not (_in_service(pod_view(before)) and not _in_service(pod_view(after))):
        return True
    pool = _pool_of(moment, after)
    if pool is None:
        return True
    instances: dict[str, list[PodView]] = {}
    for found in moment.view.select("Pod", _name(after)[0]):
        if _place(found)[:3] == _place(after)[:3]:
            instances.setdefault(_place(found)[3], []).append(pod_view(found))
    serving = {name for name, views in instances.items() if all(_healthy(v) and _in_service(v) for v in views)}
    left = serving - {_place(after)[3]}
    return len(left) >= min(pool.spec.replicas - pool.spec.rollout.max_unavailable, len(serving))


def pools_stay_within_their_bounds(moment: Moment) -> bool:
    """The autoscaler sizes no pool beyond its role's bounds."""
    sized = _sized(moment)
    if sized is None:
        return True
    _, now, (least, most) = sized
    return least <= now <= most


def nothing_shrinks_in_ignorance(moment: Moment) -> bool:
    """Without metrics the autoscaler makes no pool smaller, unless its bounds say so."""
    sized = _sized(moment)
    if sized is None or moment.metrics != "down":
        return True
    before, now, (_, most) = sized
    return now >= min(before, most)


INVARIANTS: tuple[Callable[[Moment], bool], ...] = (
    an_instance_has_one_revision,
    a_serving_instance_ends_only_drained,
    enough_instances_serve_on,
    pools_stay_within_their_bounds,
    nothing_shrinks_in_ignorance,
)


def _is_deletion(moment: Moment) -> bool:
    change = moment.change
    if change.by != Manager.OPERATOR or change.before is None or change.before["kind"] != "Pod":
        return False
    was = change.before["metadata"].get("deletionTimestamp")
    return not was and (change.after is None or bool(change.after["metadata"].get("deletionTimestamp")))


def _sized(moment: Moment) -> tuple[int, int, tuple[int, int]] | None:
    """Replicas before and after a write of the autoscaler, and the bounds that the AgentPool sets."""
    change = moment.change
    if change.by != Manager.AUTOSCALER or change.before is None or change.after is None:
        return None
    before, now = (int((m.get("spec") or {}).get("replicas", 1)) for m in (change.before, change.after))
    meta = change.after["metadata"]
    wire = moment.view.get("AgentPool", meta["namespace"], meta["labels"].get(labels.AGENT_POOL, ""))
    if wire is None or change.after["kind"] not in _POOLS:
        return None
    for role in AgentPool.model_validate(wire).spec.roles:
        made = role.prefill if change.after["kind"] == "PrefillPool" else role.decode
        if made is not None and meta["name"].endswith(f"-{role.name}"):
            return before, now, (made.replicas.min, made.replicas.max)
    return None


def _name(manifest: Manifest) -> tuple[str, str]:
    return manifest["metadata"].get("namespace", ""), manifest["metadata"]["name"]


def _place(pod: Manifest) -> tuple[str, str, str, str]:
    """Namespace, kind and name of its pool, and instance of a pod."""
    tags = pod["metadata"].get("labels", {})
    named = (tags.get(label, "") for label in (labels.POOL_KIND, labels.POOL, labels.INSTANCE))
    return (pod["metadata"].get("namespace", ""), *named)  # type: ignore[return-value]


def _mates(pods: Iterable[Manifest], pod: Manifest) -> list[PodView]:
    return [pod_view(found) for found in pods if _place(found) == _place(pod)]


def _pool_of(moment: Moment, pod: Manifest) -> PrefillPool | DecodePool | None:
    namespace, pool_kind, name, _ = _place(pod)
    kind = _KINDS.get(pool_kind)
    wire = None if kind is None else moment.view.get(kind, namespace, name)
    return None if kind is None or wire is None else _POOLS[kind].model_validate(wire)


def _in_service(view: PodView) -> bool:
    """Requests come to it; who marks a pod as draining, even by hand, has taken it out."""
    return view.routable and view.drain_started is None


def _healthy(view: PodView) -> bool:
    return view.ready and not view.deleting and view.phase == "Running"


def _world_size(pod: Manifest) -> int:
    environment = {entry["name"]: entry.get("value", "") for entry in pod["spec"]["containers"][0].get("env") or ()}
    return int(environment.get("RETINUE_WORLD_SIZE", "1"))
