"""The objects of a pool: one function per object."""

import hashlib
import json
import math
from typing import Any

from retinue.api import GROUP, VERSION, labels
from retinue.api.kvcachetier import Medium
from retinue.api.units import seconds
from retinue.engines.launch import Launch, TierServer, command
from retinue.nodeclass.claims import API_VERSION, EXACT_COUNT, TEMPLATE_KIND
from retinue.placement.pack import Placement
from retinue.plan import Manifest
from retinue.podtemplate import with_template
from retinue.pool.instances import pod_name
from retinue.pool.shape import InstanceShape
from retinue.pool.snapshot import WORLD_SIZE, PodView, PoolSnapshot

SERVICE_DOMAIN = "svc"


def service_name(pool: str, kind: str) -> str:
    return f"{pool}-{kind}"


def tier_address(tier: str, namespace: str) -> str:
    """Where engines reach the servers of a tier: the headless service, which resolves to every ready server."""
    return f"http://{tier}-tier.{namespace}.{SERVICE_DOMAIN}:{labels.HTTP_PORT}"


def selector_labels(snapshot: PoolSnapshot) -> dict[str, str]:
    """The labels that select all pods of the pool."""
    return {
        labels.MANAGED_BY: labels.RETINUE,
        labels.POOL: snapshot.pool.metadata.name,
        labels.POOL_KIND: snapshot.kind.value,
    }


def owner_reference(snapshot: PoolSnapshot) -> Manifest:
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": snapshot.pool.kind_info.kind,
        "name": snapshot.pool.metadata.name,
        "uid": snapshot.pool.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def build_service(snapshot: PoolSnapshot) -> Manifest:
    """The headless service that gives the pods of an instance their names before they are ready."""
    meta = snapshot.pool.metadata
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": service_name(meta.name, snapshot.kind),
            "namespace": meta.namespace,
            "labels": {**_inherited(snapshot), **selector_labels(snapshot)},
            "ownerReferences": [owner_reference(snapshot)],
        },
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": selector_labels(snapshot),
            "ports": [{"name": labels.HTTP_PORT_NAME, "port": labels.HTTP_PORT, "targetPort": labels.HTTP_PORT_NAME}],
        },
    }


def build_claim_template(snapshot: PoolSnapshot, shape: InstanceShape) -> Manifest | None:
    """What each pod on the shape's class claims by DRA; None where the class's devices are an extended resource.

    The spec of a template cannot be changed, so the name follows its content; at most 123 characters, as pool and class
    names are limited.
    """
    if shape.claim is None:
        return None
    meta, class_ = snapshot.pool.metadata, shape.node_class.name
    tags = {**selector_labels(snapshot), labels.NODE_CLASS: class_}
    exactly = {
        "deviceClassName": shape.claim.device_class,
        "allocationMode": EXACT_COUNT,
        "count": shape.claim.count,
    }
    spec: Manifest = {
        "metadata": {"labels": tags},
        "spec": {"devices": {"requests": [{"name": labels.DEVICES_CLAIM, "exactly": exactly}]}},
    }
    return {
        "apiVersion": API_VERSION,
        "kind": TEMPLATE_KIND,
        "metadata": {
            "name": f"{service_name(meta.name, snapshot.kind)}-{class_}-{_hash(spec)}",
            "namespace": meta.namespace,
            "labels": {**_inherited(snapshot), **tags},
            "ownerReferences": [owner_reference(snapshot)],
        },
        "spec": spec,
    }


def build_pod(
    snapshot: PoolSnapshot,
    shape: InstanceShape,
    instance: str,
    rank: int,
    revision: str,
    placement: Placement | None,
) -> Manifest:
    """One pod of an instance: gated while `placement` is None, bound to its domain afterwards.

    An annotation carries a hash of what the gate's removal must not change: a gated pod that was built differently
    cannot be released, because the API server refuses any other change of a pod.
    """
    meta = snapshot.pool.metadata
    annotations = {labels.DOMAIN: placement.domain} if placement and placement.domain else {}
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        # A deleted pod may finish its streams for as long as a drain may take.
        "terminationGracePeriodSeconds": math.ceil(seconds(snapshot.pool.spec.drain.timeout)),
        "hostname": pod_name(instance, rank),
        "subdomain": service_name(meta.name, snapshot.kind),
        "automountServiceAccountToken": False,
        "containers": [_engine_container(snapshot, shape, instance, rank)],
        "nodeSelector": dict(shape.node_class.node_selector),
    }
    tolerations = [toleration.to_wire() for toleration in shape.node_class.tolerations]
    if tolerations:
        spec["tolerations"] = tolerations
    template = build_claim_template(snapshot, shape)
    if template is not None:
        name = template["metadata"]["name"]
        spec["resourceClaims"] = [{"name": labels.DEVICES_CLAIM, "resourceClaimTemplateName": name}]
    pod: Manifest = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod_name(instance, rank),
            "namespace": meta.namespace,
            "labels": {
                **_inherited(snapshot),
                **selector_labels(snapshot),
                labels.INSTANCE: instance,
                labels.RANK: str(rank),
                labels.REVISION: revision,
                labels.NODE_CLASS: shape.node_class.name,
                labels.ROUTABLE: "true",
            },
            "annotations": annotations,
            "ownerReferences": [owner_reference(snapshot)],
        },
        "spec": spec,
    }
    merged = with_template(pod, snapshot.pool.spec.pod_template)
    merged["metadata"]["annotations"][labels.TEMPLATE] = _hash(merged["spec"])
    if placement is None:
        merged["spec"].setdefault("schedulingGates", []).append({"name": labels.PLACEMENT_GATE})
    elif placement.domain is not None and placement.domain_label is not None:
        _bind(merged["spec"], placement)
    return merged


def build_marks(snapshot: PoolSnapshot, pod: PodView, drain_started: str | None) -> Manifest:
    """What must be true of a live pod's labels: whose it is, and whether it is routable.

    It is not routable since `drain_started`; None means that it does not, or no longer, drain. The labels that name the
    pod's place are written with it, so that what somebody else changed in them is put right: routers select on them.
    """
    metadata: Manifest = {
        "name": pod.name,
        "namespace": snapshot.pool.metadata.namespace,
        "labels": {
            **_inherited(snapshot),
            **selector_labels(snapshot),
            labels.INSTANCE: pod.instance,
            labels.RANK: str(pod.rank),
            labels.ROUTABLE: "true" if drain_started is None else "false",
        },
    }
    if drain_started is not None or pod.drain_started is not None:
        # To name it no longer would leave an annotation that somebody else wrote.
        metadata["annotations"] = {labels.DRAIN_STARTED: drain_started or ""}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}


def _inherited(snapshot: PoolSnapshot) -> dict[str, str]:
    """Labels that an AgentPool put on the pool and that its pods carry on."""
    own = snapshot.pool.metadata.labels
    return {key: own[key] for key in (labels.AGENT_POOL, labels.ROLE) if key in own}


def _engine_container(snapshot: PoolSnapshot, shape: InstanceShape, instance: str, rank: int) -> Manifest:
    meta, spec = snapshot.pool.metadata, snapshot.pool.spec
    launched = command(
        Launch(
            role=snapshot.engine_role,
            model=spec.model,
            engine=spec.engine,
            parallelism=spec.parallelism,
            kv_transfer=spec.kv_transfer,
            preset=shape.node_class.preset,
            device_overrides=shape.node_class.device_overrides,
            host_cache_bytes=shape.host_cache_bytes,
            tier_servers=tuple(
                TierServer(name, tier_address(name, meta.namespace))
                for name in spec.kv_cache_tiers
                if name in snapshot.tiers and snapshot.tiers[name].spec.medium == Medium.CONTEXT_STORAGE
            ),
            port=labels.HTTP_PORT,
        )
    )
    leader = f"{pod_name(instance, 0)}.{service_name(meta.name, snapshot.kind)}.{meta.namespace}.{SERVICE_DOMAIN}"
    environment = {
        "RETINUE_NAMESPACE": meta.namespace,
        "RETINUE_POOL": meta.name,
        "RETINUE_INSTANCE": instance,
        "RETINUE_RANK": str(rank),
        WORLD_SIZE: str(shape.pods),
        "RETINUE_LEADER_ADDRESS": leader,
    }
    env: list[Manifest] = [{"name": name, "value": value} for name, value in environment.items()]
    env.append({"name": "POD_IP", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "status.podIP"}}})
    env.extend(variable.to_wire() for variable in spec.engine.env)
    return {
        "name": labels.ENGINE_CONTAINER,
        "image": launched.image,
        "command": list(launched.command),
        "args": list(launched.args),
        "env": env,
        "ports": [{"name": labels.HTTP_PORT_NAME, "containerPort": labels.HTTP_PORT, "protocol": "TCP"}],
        # A busy process answers late, which is no reason to take it out of service.
        "readinessProbe": {
            "httpGet": {"path": "/health", "port": labels.HTTP_PORT_NAME},
            "periodSeconds": 2,
            "timeoutSeconds": 5,
        },
        "resources": _resources(shape),
        # Why it ended outlives its logs: a failed pod is deleted and made anew.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }


def _resources(shape: InstanceShape) -> Manifest:
    """Extended resources must have requests equal to limits; host memory is a request only; claims go by name."""
    amounts = {name: str(amount) for name, amount in sorted(shape.resources.items())}
    limits = {name: amount for name, amount in amounts.items() if name != "memory"}
    claims = {} if shape.claim is None else {"claims": [{"name": labels.DEVICES_CLAIM}]}
    return {"requests": amounts, "limits": limits, **claims}


def _hash(spec: Manifest) -> str:
    text = json.dumps(spec, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _bind(pod_spec: Manifest, placement: Placement) -> None:
    """Adds the domain to every alternative of the required node affinity; the user's template may bring some."""
    expressions: list[Manifest] = [{"key": key, "operator": "DoesNotExist"} for key in placement.nearer_labels]
    expressions.append({"key": placement.domain_label, "operator": "In", "values": [placement.domain]})
    node_affinity: Manifest = pod_spec.setdefault("affinity", {}).setdefault("nodeAffinity", {})
    required: Manifest = node_affinity.setdefault("requiredDuringSchedulingIgnoredDuringExecution", {})
    terms: list[Manifest] = required.setdefault("nodeSelectorTerms", [{}])
    for term in terms:
        term["matchExpressions"] = [*term.get("matchExpressions", []), *expressions]
