"""Merges the pod template of a user over the pod that was built, so that only what the user names is different."""

import copy
from collections.abc import Mapping
from typing import Any

from retinue.plan import Manifest


def with_template(pod: Manifest, template: Mapping[str, Any] | None) -> Manifest:
    """The pod with what the user names: maps merge, lists of named things (containers, env, volumes) merge by name.

    The rest gives way. Nothing is copied where the user names nothing. The labels and annotations of the built pod stay
    as they are: routers and the operator itself select on them.
    """
    if not template:
        return pod
    own = copy.deepcopy({key: value for key, value in template.items() if key in ("metadata", "spec")})
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
    if isinstance(base, list) and isinstance(own, list) and _named(base) and _named(own):
        by_name = {item["name"]: item for item in base}
        for item in own:
            by_name[item["name"]] = _merge(by_name[item["name"]], item) if item["name"] in by_name else item
        return list(by_name.values())
    return own


def _named(items: list[Any]) -> bool:
    return all(isinstance(item, dict) and "name" in item for item in items)
