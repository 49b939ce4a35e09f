"""Reads the cache into the plain values that several snapshots share: classes, nodes, what pods hold, pools, tiers."""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from pydantic import ValidationError

from retinue.api import KVCacheTier, NodeClass
from retinue.api.types import Model
from retinue.catalog.load import UnknownPreset
from retinue.nodeclass.claims import TEMPLATE_KIND, template_from
from retinue.nodeclass.nodes import Hold, Node, holds_from, node_from
from retinue.nodeclass.resolve import ResolvedClass, resolve
from retinue.plan import Key, Manifest
from retinue_operator.cache import Cache

_Kind = TypeVar("_Kind", bound=Model)


@dataclass(frozen=True)
class Fleet:
    """Nodes, the classes they belong to, and what pods hold. `errors` says why a class cannot be used."""

    classes: dict[str, ResolvedClass]
    errors: dict[str, str]
    nodes: tuple[Node, ...]
    holds: tuple[Hold, ...]


# Models by uid and version, because one change wakes up many that read the same classes and pools. Models are frozen.
_PARSED: OrderedDict[tuple[str, str], Model | None] = OrderedDict()
_PARSED_LIMIT = 10_000


def parse(model: type[_Kind], manifest: Manifest | None) -> _Kind | None:
    """The object as its model; None if it is gone, or if a newer or foreign writer made it unreadable."""
    if manifest is None:
        return None
    metadata = manifest["metadata"]
    key = (metadata.get("uid", ""), metadata.get("resourceVersion", ""))
    if key in _PARSED:
        known = _PARSED[key]
        if known is None or isinstance(known, model):
            return known
    try:
        parsed = model.model_validate(manifest)
    except ValidationError:
        parsed = None
    if all(key):
        _PARSED[key] = parsed
        if len(_PARSED) > _PARSED_LIMIT:
            _PARSED.popitem(last=False)
    return parsed


def parse_all(model: type[_Kind], manifests: Iterable[Manifest]) -> dict[str, _Kind]:
    """Readable objects by name."""
    found = {m["metadata"]["name"]: parse(model, m) for m in manifests}
    return {name: object_ for name, object_ in found.items() if object_ is not None}


def fleet(cache: Cache) -> Fleet:
    """All nodes and classes, and the holds of all pods that Retinue manages."""
    classes: dict[str, ResolvedClass] = {}
    errors: dict[str, str] = {}
    for name, object_ in parse_all(NodeClass, cache.select("NodeClass")).items():
        try:
            classes[name] = resolve(name, object_.spec, object_.metadata.annotations)
        except UnknownPreset as error:
            errors[name] = f"spec.preset: {error}"
    return Fleet(
        classes=classes,
        errors=errors,
        nodes=tuple(node_from(manifest) for manifest in cache.select("Node")),
        holds=holds_from(cache.select("Pod"), map(template_from, cache.select(TEMPLATE_KIND))),
    )


def tiers(cache: Cache, namespace: str) -> dict[str, KVCacheTier]:
    """The tiers of a namespace by name."""
    return parse_all(KVCacheTier, cache.select("KVCacheTier", namespace))


def key_of(manifest: Manifest) -> Key:
    """The key of an object from the wire."""
    meta = manifest["metadata"]
    return Key(manifest["kind"], meta.get("namespace", ""), meta["name"])


def all_keys(cache: Cache, kind: str, namespace: str | None = None) -> list[Key]:
    """The keys of every object of a kind."""
    return [Key(kind, m["metadata"].get("namespace", ""), m["metadata"]["name"]) for m in cache.select(kind, namespace)]
