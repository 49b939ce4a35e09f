"""The kinds that the operator reads and writes, and their places in the API server's paths."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from retinue.api import GROUP, KINDS, VERSION
from retinue.api.labels import MANAGED_BY, RETINUE


@dataclass(frozen=True)
class Resource:
    """One kind: `api_version` as in manifests, `plural` as in paths; `label` limits what is listed and watched."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool
    label: tuple[str, str] | None = None

    @property
    def group(self) -> str:
        """The API group, empty for core."""
        return self.api_version.rpartition("/")[0]

    @property
    def version(self) -> str:
        return self.api_version.rpartition("/")[2]

    @property
    def selector(self) -> str:
        """The label selector of lists and watches, empty for all objects."""
        return "=".join(self.label) if self.label else ""

    def selects(self, manifest: Mapping[str, Any]) -> bool:
        """Whether lists and watches of this kind include the object."""
        return self.label is None or (manifest["metadata"].get("labels") or {}).get(self.label[0]) == self.label[1]

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """The URL path of a collection (no name), an object or its subresource.

        A namespaced kind without a namespace means all namespaces. Raises ValueError for a name without namespace.
        """
        if self.namespaced and name and not namespace:
            raise ValueError(f"{self.kind} {name} needs a namespace")
        root = f"/apis/{self.api_version}" if self.group else f"/api/{self.api_version}"
        scope = f"/namespaces/{namespace}" if self.namespaced and namespace else ""
        return root + scope + "".join(f"/{part}" for part in (self.plural, name, subresource) if part)


_OURS = (MANAGED_BY, RETINUE)

OWN_KINDS: tuple[Resource, ...] = tuple(
    Resource(f"{GROUP}/{VERSION}", model.kind_info.kind, model.kind_info.plural, model.kind_info.namespaced)
    for model in KINDS
)
POD = Resource("v1", "Pod", "pods", namespaced=True, label=_OURS)
SERVICE = Resource("v1", "Service", "services", namespaced=True, label=_OURS)
CLAIM_TEMPLATE = Resource(
    "resource.k8s.io/v1", "ResourceClaimTemplate", "resourceclaimtemplates", namespaced=True, label=_OURS
)
NODE = Resource("v1", "Node", "nodes", namespaced=False)
LEASE = Resource("coordination.k8s.io/v1", "Lease", "leases", namespaced=True)
EVENT = Resource("events.k8s.io/v1", "Event", "events", namespaced=True)

# What the cache holds: listed, watched and swept.
WATCHED: tuple[Resource, ...] = (*OWN_KINDS, CLAIM_TEMPLATE, POD, SERVICE, NODE)

_BY_KIND: Mapping[str, Resource] = {resource.kind: resource for resource in (*WATCHED, LEASE, EVENT)}


def resource_of(kind: str) -> Resource:
    """The resource of a kind by name; raises KeyError with the list of those known."""
    try:
        return _BY_KIND[kind]
    except KeyError:
        raise KeyError(f"kind {kind} is not one of {', '.join(sorted(_BY_KIND))}") from None


def identity(manifest: Mapping[str, Any]) -> tuple[str, str, str]:
    """(kind, namespace, name) of an object; the namespace is empty for cluster-scoped kinds."""
    metadata = manifest["metadata"]
    return manifest["kind"], metadata.get("namespace", ""), metadata["name"]
