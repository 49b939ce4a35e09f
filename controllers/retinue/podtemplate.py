"""Merges the pod template of a user over the pod that was built, so that only what the user names is different."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from retinue.plan import Manifest

_TEXTS: dict[str, Any] = {"*": str}
_NAMED = [{"name": str}]
_CONTAINERS = [
    {"name": str, "env": _NAMED, "ports": [{}], "volumeMounts": [{}], "resources": {"requests": {}, "limits": {}}}
]
_TERMS: dict[str, Any] = {"nodeSelectorTerms": [{"matchExpressions": [{}]}]}
# What Retinue reads or extends after the merge; the rest is the API server's to judge. A map stands for a map that may
# have these fields, "*" for any; a list for a list of such items. Items that have a name must say it.
_SHAPE: dict[str, Any] = {
    "metadata": {"labels": _TEXTS, "annotations": _TEXTS},
    "spec": {
        "containers": _CONTAINERS,
        "initContainers": _CONTAINERS,
        "volumes": _NAMED,
        "resourceClaims": _NAMED,
        "schedulingGates": _NAMED,
        "nodeSelector": _TEXTS,
        "tolerations": [{}],
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": _TERMS}},
    },
}
_CALLED = {dict: "a map", list: "a list", str: "a string", bool: "true or false", int: "a number", float: "a number"}


def wrong_template(template: Mapping[str, Any] | None) -> str | None:
    """What is of the wrong type in `spec.podTemplate`, as a sentence that names the field; None when all is well."""
    return next(_wrong("spec.podTemplate", _without_nulls(template or {}), _SHAPE), None)


def with_template(pod: Manifest, template: Mapping[str, Any] | None) -> Manifest:
    """The pod with what the user names: maps merge, lists of named things (containers, env, volumes) merge by name.

    The rest gives way; null names nothing. Nothing is copied where the user names nothing. The labels and annotations
    of the built pod stay as they are: routers and the operator itself select on them. The template must be one in which
    `wrong_template` finds nothing.
    """
    if not template:
        return pod
    own = _without_nulls({key: value for key, value in template.items() if key in ("metadata", "spec")})
    merged: Manifest = _merge(copy.deepcopy(pod), own)
    for field in ("labels", "annotations"):
        merged["metadata"][field] = {**merged["metadata"].get(field, {}), **pod["metadata"].get(field, {})}
    return merged


def _merge(base: Any, own: Any) -> Any:
    if isinstance(base, dict) and isinstance(own, dict):
        return {
            key: _merge(base[key], own[key]) if key in base and key in own else base.get(key, own.get(key))
            for key in {**base, **own}
        }
    if isinstance(base, list) and isinstance(own, list) and all(map(_named, base)):
        by_name = {item["name"]: item for item in base}
        for item in filter(_named, own):
            by_name[item["name"]] = _merge(by_name[item["name"]], item) if item["name"] in by_name else item
        return [*by_name.values(), *(item for item in own if not _named(item))]
    return own


def _named(item: Any) -> bool:
    return isinstance(item, dict) and isinstance(item.get("name"), str)


def _without_nulls(value: Any) -> Any:
    """A copy without the fields that are null, which the API server takes for fields that are not there."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _wrong(path: str, value: Any, shape: Any) -> Iterator[str]:
    wanted: Any = shape if isinstance(shape, type) else type(shape)
    if not isinstance(value, wanted):
        found = "null" if value is None else _CALLED[type(value)]
        yield f"{path}: must be {_CALLED[wanted]}, not {found}"
        return
    if isinstance(shape, dict):
        if shape.get("name") is str and "name" not in value:
            yield f"{path}.name: is missing: what it merges with is found by its name"
        for key, item in value.items():
            if (expected := shape.get(key, shape.get("*"))) is not None:
                yield from _wrong(f"{path}.{key}", item, expected)
    if isinstance(shape, list):
        for number, item in enumerate(value):
            yield from _wrong(f"{path}[{number}]", item, shape[0])
