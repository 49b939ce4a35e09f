"""Devices that pods claim by DRA: what a claim template asks for, and how such devices are counted.

Shape of the objects: k8s.io/api v0.37 resource/v1 types.go. No node lists such devices in its status, so placement
counts them under a key of its own; the container's resources never name it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from retinue.plan import Manifest

API_VERSION = "resource.k8s.io/v1"
TEMPLATE_KIND = "ResourceClaimTemplate"
EXACT_COUNT = "ExactCount"


@dataclass(frozen=True)
class DeviceClaim:
    """`count` devices of a DeviceClass for one pod."""

    device_class: str
    count: int


@dataclass(frozen=True)
class ClaimTemplate:
    """A live ResourceClaimTemplate; `requests` is what one pod that uses it holds, by counting key."""

    namespace: str
    name: str
    uid: str
    deleting: bool
    requests: Mapping[str, int]


def counting_key(device_class: str) -> str:
    """The resource name under which placement counts the devices of a DeviceClass.

    Kubernetes (1.36, KEP-5004) has this name for the class as an extended resource, so no device plugin can use it.
    """
    return f"deviceclass.resource.kubernetes.io/{device_class}"


def template_from(manifest: Manifest) -> ClaimTemplate:
    """A ClaimTemplate from the wire. Requests without an exact count are left out: they say no number."""
    meta = manifest["metadata"]
    requests: dict[str, int] = {}
    for request in manifest.get("spec", {}).get("spec", {}).get("devices", {}).get("requests", []):
        exactly = request.get("exactly", {})
        if exactly.get("allocationMode", EXACT_COUNT) == EXACT_COUNT and "deviceClassName" in exactly:
            key = counting_key(exactly["deviceClassName"])
            requests[key] = requests.get(key, 0) + exactly.get("count", 1)
    return ClaimTemplate(
        namespace=meta.get("namespace", ""),
        name=meta["name"],
        uid=meta.get("uid", ""),
        deleting=meta.get("deletionTimestamp") is not None,
        requests=requests,
    )


def template_names(pod_spec: Manifest) -> tuple[str, ...]:
    """The claim templates that a pod names, in its order."""
    claims = pod_spec.get("resourceClaims", [])
    return tuple(claim["resourceClaimTemplateName"] for claim in claims if claim.get("resourceClaimTemplateName"))
