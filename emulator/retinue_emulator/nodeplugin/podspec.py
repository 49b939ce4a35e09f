"""Reads from a pod's spec what its containers are to be run with: command line, environment, probes, devices."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from retinue.api.units import quantity

from .containerstate import JsonObject

_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")


class UnsupportedEnv(ValueError):
    """The environment refers to something that an emulated node does not read."""


@dataclass(frozen=True)
class Probe:
    """When a container counts as answering or not; seconds as in the spec."""

    period_seconds: float
    failure_threshold: int


@dataclass(frozen=True)
class CommandLine:
    """What a container runs."""

    argv: tuple[str, ...]
    env: Mapping[str, str]


def command_line(
    pod: JsonObject, container: JsonObject, *, node: str, host_ip: str, pod_ip: str, extra: Mapping[str, str]
) -> CommandLine:
    """Command, arguments and environment with all references resolved; `extra` is what a device plugin adds.

    Raises:
        UnsupportedEnv: a variable comes from a Secret or ConfigMap, which an emulated node may not read.
    """
    env: dict[str, str] = {}
    for variable in container.get("env", []):
        name = variable["name"]
        if "valueFrom" in variable:
            env[name] = _value_from(pod, container, variable, node=node, host_ip=host_ip, pod_ip=pod_ip)
        else:
            env[name] = _expand(variable.get("value", ""), env)
    env |= extra
    argv = [_expand(part, env) for part in (*container.get("command", []), *container.get("args", []))]
    return CommandLine(tuple(argv), env)


def requested_devices(container: JsonObject) -> dict[str, int]:
    """Extended resources that the container asks for, by name; limits count, as they do for the scheduler."""
    limits = container.get("resources", {}).get("limits", {})
    return {name: quantity(amount) for name, amount in limits.items() if "/" in name}


def probe(container: JsonObject, kind: str) -> Probe | None:
    """The container's `readinessProbe` or `livenessProbe`, None when it has none."""
    spec = container.get(kind)
    if spec is None:
        return None
    return Probe(float(spec.get("periodSeconds", 10)), int(spec.get("failureThreshold", 3)))


def grace_seconds(pod: JsonObject) -> float:
    """How long a deleted pod may take to end."""
    metadata = pod["metadata"]
    if "deletionGracePeriodSeconds" in metadata:
        return float(metadata["deletionGracePeriodSeconds"])
    return float(pod["spec"].get("terminationGracePeriodSeconds", 30))


def _value_from(
    pod: JsonObject, container: JsonObject, variable: JsonObject, *, node: str, host_ip: str, pod_ip: str
) -> str:
    source = variable["valueFrom"]
    if "fieldRef" in source:
        path = source["fieldRef"]["fieldPath"]
        metadata = pod["metadata"]
        plain = {
            "metadata.name": metadata["name"],
            "metadata.namespace": metadata["namespace"],
            "metadata.uid": metadata["uid"],
            "spec.nodeName": node,
            "spec.serviceAccountName": pod["spec"].get("serviceAccountName", ""),
            "status.hostIP": host_ip,
            "status.hostIPs": host_ip,
            "status.podIP": pod_ip,
            "status.podIPs": pod_ip,
        }
        if path in plain:
            return str(plain[path])
        if match := re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path):
            return str(metadata.get(match[1], {}).get(match[2], ""))
    if "resourceFieldRef" in source:
        limits = container.get("resources", {})
        section, _, name = source["resourceFieldRef"]["resource"].partition(".")
        return str(quantity(limits.get(section, {}).get(name, 0)))
    kind = next(iter(source))
    if source[kind].get("optional"):
        return ""
    raise UnsupportedEnv(
        f"environment variable {variable['name']} of container {container['name']} comes from {kind}, which emulated "
        "nodes do not read; give it a value or mark it optional"
    )


def _expand(text: str, env: Mapping[str, str]) -> str:
    """`$(NAME)` becomes the variable's value, `$$` a dollar; unknown names stay as they are, as on a kubelet."""

    def replaced(match: re.Match[str]) -> str:
        if match[1] is None:
            return "$"
        return env.get(match[1], match[0])

    return _REFERENCE.sub(replaced, text)
