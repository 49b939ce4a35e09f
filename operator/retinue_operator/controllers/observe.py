"""Reads objects of the cache into their models, which several snapshots share."""

from collections import OrderedDict
from collections.abc import Iterable
from typing import TypeVar

from pydantic import ValidationError

from retinue.api import KVCacheTier
from retinue.api.types import Model
from retinue.plan import Key, Manifest
from retinue_operator.cache import Cache

_Kind = TypeVar("_Kind", bound=Model)


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
