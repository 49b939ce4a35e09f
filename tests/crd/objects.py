"""Reads and writes objects of the five kinds through the API server's REST API, with its errors as values."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from kubernetes import config

from retinue.api import GROUP, KINDS, VERSION
from retinue.api.types import Model
from retinue_emulator.loopback import ClusterAccess

_ROOT = Path(__file__).resolve().parents[2]
SAMPLES = _ROOT / "docs" / "reference" / "samples"
CRDS = _ROOT / "crds"
MODELS: Mapping[str, type[Model]] = {kind.kind_info.kind: kind for kind in KINDS}
INFOS = {kind.kind_info.kind: kind.kind_info for kind in KINDS}

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Refusal(Exception):
    """The API server's answer to a request that it refuses: its message and the fields it names."""

    code: int
    message: str
    fields: tuple[str, ...]


def sample(name: str) -> Manifest:
    """A fresh copy of the sample manifest docs/reference/samples/<name>.yaml."""
    manifest = yaml.safe_load((SAMPLES / f"{name}.yaml").read_text(encoding="utf-8"))
    assert isinstance(manifest, dict)
    return manifest


def sample_names() -> list[str]:
    return sorted(path.stem for path in SAMPLES.glob("*.yaml"))


def fields_of(schema: Mapping[str, Any], path: str = "") -> set[str]:
    """Paths of all fields that a schema declares, such as ``roles[].model.name``."""
    if "items" in schema:
        return fields_of(schema["items"], f"{path}[]")
    found = {f"{path}.{name}".lstrip(".") for name in schema.get("properties", {})}
    for name, child in schema.get("properties", {}).items():
        found |= fields_of(child, f"{path}.{name}".lstrip("."))
    return found


def fields_in(value: Any, path: str = "") -> set[str]:
    """Paths of all fields that a value sets, in the form of `fields_of`."""
    if isinstance(value, list):
        return {field for item in value for field in fields_in(item, f"{path}[]")}
    if not isinstance(value, dict):
        return set()
    found = {f"{path}.{name}".lstrip(".") for name in value}
    for name, child in value.items():
        found |= fields_in(child, f"{path}.{name}".lstrip("."))
    return found


def schema_of(kind: str, part: str) -> dict[str, Any]:
    """The schema of a kind's `spec` or `status` in the checked-in CRD."""
    crd = yaml.safe_load((CRDS / f"{GROUP}_{INFOS[kind].plural}.yaml").read_text(encoding="utf-8"))
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"][part]
    assert isinstance(schema, dict)
    return schema


def merged(base: Any, patch: Any) -> Any:
    """JSON merge patch (RFC 7386), and a map with only numbers for keys patches the items of a list."""
    if isinstance(base, list) and isinstance(patch, dict) and all(isinstance(key, int) for key in patch):
        return [merged(item, patch[index]) if index in patch else item for index, item in enumerate(base)]
    if not isinstance(patch, dict):
        return patch
    result = dict(base) if isinstance(base, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


class Objects:
    """The objects of one namespace, and the cluster's NodeClasses."""

    def __init__(self, access: ClusterAccess, namespace: str) -> None:
        # The function is one of the few in the library without types.
        self._client = config.new_client_from_config(  # type: ignore[no-untyped-call]
            config_file=str(access.kubeconfig)
        )
        self.namespace = namespace
        self._cluster_scoped: list[tuple[str, str]] = []

    def create(self, manifest: Manifest, *, dry_run: bool = False) -> Manifest:
        """Creates the object; raises Refusal."""
        query = {"fieldValidation": "Strict", "fieldManager": "test"}
        if dry_run:
            query["dryRun"] = "All"
        created = self._request("POST", self._path(manifest["kind"]), query, manifest)
        if not dry_run and not INFOS[manifest["kind"]].namespaced:
            self._cluster_scoped.append((manifest["kind"], manifest["metadata"]["name"]))
        return created

    def create_sample(self, name: str) -> Manifest:
        """Creates a sample; one without a namespace gets a name that no other test has."""
        manifest = sample(name)
        if not INFOS[manifest["kind"]].namespaced:
            manifest["metadata"]["name"] += self.namespace[-7:]
        return self.create(manifest)

    def delete_cluster_scoped(self) -> None:
        """Deletes what this object created outside of its namespace."""
        while self._cluster_scoped:
            kind, name = self._cluster_scoped.pop()
            self._request("DELETE", self._path(kind, name))

    def get(self, kind: str, name: str, subresource: str = "") -> Manifest:
        return self._request("GET", self._path(kind, name, subresource))

    def replace(self, manifest: Manifest, subresource: str = "") -> Manifest:
        """Replaces the object, or one subresource of it; raises Refusal."""
        path = self._path(manifest["kind"], manifest["metadata"]["name"], subresource)
        return self._request("PUT", path, {"fieldValidation": "Strict"}, manifest)

    def scale(self, kind: str, name: str, replicas: int) -> Manifest:
        """Writes the scale subresource and returns its answer; raises Refusal."""
        scale = self.get(kind, name, "scale")
        scale["spec"]["replicas"] = replicas
        return self._request("PUT", self._path(kind, name, "scale"), {}, scale)

    def apply(self, manifest: Manifest, manager: str, subresource: str = "") -> Manifest:
        """Server-side applies the fields in the manifest as this manager; raises Refusal."""
        path = self._path(manifest["kind"], manifest["metadata"]["name"], subresource)
        return self._request("PATCH", path, {"fieldManager": manager, "fieldValidation": "Strict"}, manifest)

    def _path(self, kind: str, name: str = "", subresource: str = "") -> str:
        info = INFOS[kind]
        scope = f"/namespaces/{self.namespace}" if info.namespaced else ""
        parts = (part for part in (info.plural, name, subresource) if part)
        return f"/apis/{GROUP}/{VERSION}{scope}/{'/'.join(parts)}"

    def _request(
        self, method: str, path: str, query: Mapping[str, str] | None = None, body: Manifest | None = None
    ) -> Manifest:
        content = "application/apply-patch+yaml" if method == "PATCH" else "application/json"
        request = self._client.param_serialize(
            method,
            path,
            query_params=list((query or {}).items()),
            header_params={"Accept": "application/json", "Content-Type": content},
            body=body,
            auth_settings=["BearerToken"],
        )
        response = self._client.call_api(*request)
        answer: Manifest = json.loads(response.read())
        if response.status >= 400:
            causes = answer.get("details", {}).get("causes", [])
            fields = tuple(cause.get("field", "") for cause in causes)
            raise Refusal(response.status, answer["message"], fields)
        return answer
