"""Whether a pool can be served at all: its engine, model, classes and tiers, checked in order."""

from collections.abc import Mapping
from dataclasses import dataclass

from retinue.api.kvcachetier import Medium
from retinue.catalog.load import UnknownModel, model
from retinue.conditions import ConditionType, Finding, Reason, find
from retinue.engines.launch import unknown_option, unsupported
from retinue.podtemplate import wrong_template
from retinue.pool.shape import InstanceShape, Misfit, instance_shape
from retinue.pool.snapshot import PoolSnapshot


@dataclass(frozen=True)
class Admission:
    """The shapes an instance may take, by node class in order of preference, and what the checks found.

    `shapes` is empty when the pool is not valid; `connected` says whether new instances may be created.
    """

    shapes: Mapping[str, InstanceShape]
    valid: Finding
    cache: Finding

    @property
    def connected(self) -> bool:
        return self.cache.status is True


def admit(snapshot: PoolSnapshot) -> Admission:
    """Runs the checks; the first that fails names the reason."""
    cache = _cache(snapshot)
    invalid = _engine(snapshot) or _model(snapshot) or _unserved_fields(snapshot) or _template(snapshot)
    if invalid is not None:
        return Admission({}, invalid, cache)
    shapes, misfits = _shapes(snapshot)
    if shapes:
        note = f"not usable: {'; '.join(misfits)}" if misfits else ""
        return Admission(shapes, Finding(ConditionType.VALID, True, Reason.ACCEPTED, note), cache)
    return Admission({}, _no_class(snapshot, misfits), cache)


def _engine(snapshot: PoolSnapshot) -> Finding | None:
    engine = snapshot.pool.spec.engine
    if (reason := unsupported(engine)) is not None:
        return Finding(ConditionType.VALID, False, Reason.NOT_SUPPORTED, reason)
    if (reason := unknown_option(engine)) is not None:
        return Finding(ConditionType.VALID, False, Reason.UNKNOWN_OPTION, reason)
    return None


def _model(snapshot: PoolSnapshot) -> Finding | None:
    try:
        model(snapshot.pool.spec.model.name)
    except UnknownModel as error:
        return Finding(ConditionType.VALID, False, Reason.UNKNOWN_MODEL, f"spec.model.name: {error}")
    return None


def _unserved_fields(snapshot: PoolSnapshot) -> Finding | None:
    """Fields that the API has and this version does not act on are refused, never ignored."""
    wire = snapshot.pool.spec.to_wire()
    for field, what in (
        ("attentionFFN", "attention-FFN disaggregation"),
        ("speculativeDecoding", "speculative decoding"),
    ):
        if field in wire:
            engine = snapshot.pool.spec.engine.type
            message = f"spec.{field}: {what} is not available with engine type {engine} yet: remove it"
            return Finding(ConditionType.VALID, False, Reason.NOT_SUPPORTED, message)
    return None


def _template(snapshot: PoolSnapshot) -> Finding | None:
    if (wrong := wrong_template(snapshot.pool.spec.pod_template)) is not None:
        return Finding(ConditionType.VALID, False, Reason.WRONG_POD_TEMPLATE, wrong)
    return None


def _shapes(snapshot: PoolSnapshot) -> tuple[dict[str, InstanceShape], list[str]]:
    shapes: dict[str, InstanceShape] = {}
    misfits: list[str] = []
    spec = snapshot.pool.spec
    tiers = {name: snapshot.tiers[name] for name in spec.kv_cache_tiers if name in snapshot.tiers}
    for name in spec.node_classes:
        if name in snapshot.class_errors:
            misfits.append(f"node class {name}: {snapshot.class_errors[name]}")
        elif name not in snapshot.classes:
            misfits.append(f"node class {name} does not exist")
        else:
            shape = instance_shape(spec.model, spec.parallelism, snapshot.classes[name], tiers)
            if isinstance(shape, Misfit):
                misfits.append(f"{name}: {shape.message}")
            else:
                shapes[name] = shape
    return shapes, misfits


def _no_class(snapshot: PoolSnapshot, misfits: list[str]) -> Finding:
    missing = [name for name in snapshot.pool.spec.node_classes if name not in snapshot.classes]
    if len(missing) == len(snapshot.pool.spec.node_classes):
        message = f"spec.nodeClasses: {'; '.join(misfits)}: create a NodeClass of that name or correct the field"
        return Finding(ConditionType.VALID, False, Reason.NODE_CLASS_MISSING, message)
    return Finding(ConditionType.VALID, False, Reason.MODEL_DOES_NOT_FIT, "; ".join(misfits))


def _cache(snapshot: PoolSnapshot) -> Finding:
    names = snapshot.pool.spec.kv_cache_tiers
    if not names:
        return Finding(ConditionType.CACHE_CONNECTED, True, Reason.NO_TIERS, "spec.kvCacheTiers is empty")
    missing = [name for name in names if name not in snapshot.tiers]
    if missing:
        message = f"spec.kvCacheTiers: no KVCacheTier {', '.join(missing)} in this namespace: create it or remove it"
        return Finding(ConditionType.CACHE_CONNECTED, False, Reason.TIER_MISSING, message)
    waiting = [name for name in names if not _usable(snapshot, name)]
    if waiting:
        message = f"waiting for KVCacheTier {', '.join(waiting)}: see kubectl describe kvt {waiting[0]}"
        return Finding(ConditionType.CACHE_CONNECTED, False, Reason.TIER_NOT_READY, message)
    return Finding(ConditionType.CACHE_CONNECTED, True, Reason.TIERS_CONNECTED, f"connected to {', '.join(names)}")


def _usable(snapshot: PoolSnapshot, name: str) -> bool:
    """A tier in the engine is usable when it is valid; a tier of servers when one of them is ready."""
    tier = snapshot.tiers[name]
    valid = find(tier.status.conditions, ConditionType.VALID)
    if tier.spec.medium == Medium.CONTEXT_STORAGE:
        return valid is not None and valid.status == "True" and (tier.status.ready_replicas or 0) > 0
    return valid is not None and valid.status == "True"
