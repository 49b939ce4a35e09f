"""The objects of a tier that runs servers: a headless service and one pod per server."""

import hashlib
import json

from retinue.api import GROUP, VERSION, KVCacheTier, labels
from retinue.api.units import quantity
from retinue.engines import simulated
from retinue.nodeclass.resolve import ResolvedClass
from retinue.plan import Manifest
from retinue.podtemplate import with_template


def service_name(tier: str) -> str:
    return f"{tier}-tier"


def server_name(tier: str, index: int) -> str:
    return f"{tier}-tier-{index}-0"


def server_labels(tier: KVCacheTier) -> dict[str, str]:
    """The labels that select the tier's servers."""
    return {
        labels.MANAGED_BY: labels.RETINUE,
        labels.POOL_KIND: labels.POOL_KIND_TIER,
        labels.TIER: tier.metadata.name,
    }


def revision(tier: KVCacheTier) -> str:
    """Ten hex digits that differ when a server started from this spec would differ."""
    wire = tier.spec.to_wire()
    launched = {
        key: wire[key]
        for key in ("backend", "capacityPerMember", "nodeClass", "image", "eviction", "podTemplate")
        if key in wire
    }
    return hashlib.sha256(json.dumps(launched, sort_keys=True).encode()).hexdigest()[:10]


def build_service(tier: KVCacheTier) -> Manifest:
    """The name under which engines find every ready server."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": service_name(tier.metadata.name),
            "namespace": tier.metadata.namespace,
            "labels": {**_inherited(tier), **server_labels(tier)},
            "ownerReferences": [_owner(tier)],
        },
        "spec": {
            "clusterIP": "None",
            "selector": server_labels(tier),
            "ports": [{"name": labels.HTTP_PORT_NAME, "port": labels.HTTP_PORT, "targetPort": labels.HTTP_PORT_NAME}],
        },
    }


def build_server(tier: KVCacheTier, class_: ResolvedClass, index: int) -> Manifest:
    """One server pod; the kubelet restarts it in place when it fails."""
    meta, spec = tier.metadata, tier.spec
    name = server_name(meta.name, index)
    capacity = quantity(spec.capacity_per_member or "0")
    container: Manifest = {
        "name": labels.TIER_CONTAINER,
        "image": spec.image or simulated.DEFAULT_IMAGE,
        "command": list(simulated.TIER_COMMAND),
        "args": list(simulated.tier_args(capacity_bytes=capacity, port=labels.HTTP_PORT)),
        "ports": [{"name": labels.HTTP_PORT_NAME, "containerPort": labels.HTTP_PORT, "protocol": "TCP"}],
        # A busy process answers late, which is no reason to take it out of service.
        "readinessProbe": {
            "httpGet": {"path": "/health", "port": labels.HTTP_PORT_NAME},
            "periodSeconds": 2,
            "timeoutSeconds": 5,
        },
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    pod_spec: Manifest = {
        "hostname": name,
        "subdomain": service_name(meta.name),
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 30,
        "nodeSelector": dict(class_.node_selector),
        "containers": [container],
    }
    tolerations = [toleration.to_wire() for toleration in class_.tolerations]
    if tolerations:
        pod_spec["tolerations"] = tolerations
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": meta.namespace,
            "labels": {
                **_inherited(tier),
                **server_labels(tier),
                labels.INSTANCE: f"{meta.name}-tier-{index}",
                labels.RANK: "0",
                labels.REVISION: revision(tier),
                labels.NODE_CLASS: class_.name,
            },
            "ownerReferences": [_owner(tier)],
        },
        "spec": pod_spec,
    }
    return with_template(pod, spec.pod_template)


def _inherited(tier: KVCacheTier) -> dict[str, str]:
    return (
        {labels.AGENT_POOL: tier.metadata.labels[labels.AGENT_POOL]}
        if labels.AGENT_POOL in tier.metadata.labels
        else {}
    )


def _owner(tier: KVCacheTier) -> Manifest:
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": tier.kind_info.kind,
        "name": tier.metadata.name,
        "uid": tier.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
