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

SAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples" / "samples"
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
    """A fresh copy of the sample manifest docs/examples/samples/<name>.yaml."""
    manifest = yaml.safe_load((SAMPLES / f"{name}.yaml").read_text(encoding="utf-8"))
    assert isinstance(manifest, dict)
    return manifest


def sample_names() -> list[str]:
    return sorted(path.stem for path in SAMPLES.glob("*.yaml"))


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
        self._client = config.new_client_from_config(config_file=str(access.kubeconfig))
        self.namespace = namespace

    def create(self, manifest: Manifest, *, dry_run: bool = False, strict: bool = True) -> Manifest:
        """Creates the object; raises Refusal."""
        query = {"fieldValidation": "Strict" if strict else "Ignore", "fieldManager": "test"}
        if dry_run:
            query["dryRun"] = "All"
        return self._request("POST", self._path(manifest["kind"]), query, manifest)

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

    def delete(self, kind: str, name: str) -> None:
        self._request("DELETE", self._path(kind, name))

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


