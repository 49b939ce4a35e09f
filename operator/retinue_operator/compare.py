"""Whether a live object is as planned: each planned field is there with its value, however it is written."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from retinue.plan import Manifest

# Keys by which Kubernetes merges lists of named things, most telling first.
_NAMES = ("name", "type", "key", "mountPath", "devicePath", "containerPort", "port", "ip", "uid", "topologyKey")
# Below these fields strings are quantities: "1000m" is "1".
_QUANTITIES = frozenset({"limits", "requests", "capacity", "allocatable", "overhead", "sizeLimit"})
_QUANTITY = re.compile(r"^([+-]?[0-9.]+)([eE][+-]?[0-9]+|m|u|n|k|[KMGTPE]i?)?$")
_FACTORS: Mapping[str, Decimal] = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "": Decimal(1),
    "k": Decimal(10) ** 3,
    **{unit: Decimal(10) ** (3 * power) for power, unit in enumerate("MGTPE", start=2)},
    **{f"{unit}i": Decimal(2) ** (10 * power) for power, unit in enumerate("KMGTPE", start=1)},
}

Difference = tuple[str, str]


def spec_hash(manifest: Manifest) -> str:
    """A hash of a planned object, the same for equal content in any key order."""
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def differences(planned: Manifest, live: Manifest) -> frozenset[Difference]:
    """The planned fields that are not so in the live object, each with its live value; empty = as planned.

    What the live object has in addition is fine. Lists of named things are compared by name, other lists as a whole
    (tolerations as a set, because admission adds some).
    """
    return frozenset(_compare(planned, live, ""))


def surplus(planned: Manifest, live: Manifest) -> frozenset[Difference]:
    """The fields that the live object has and the plan has not, or has with another value."""
    return frozenset(_compare(live, planned, ""))


def _compare(planned: Any, live: Any, path: str) -> Iterator[Difference]:
    # Mostly all is as planned, and Python compares whole trees much faster than this function walks them.
    if planned == live or (_absent(planned) and _absent(live)):
        return
    if isinstance(planned, Mapping) and isinstance(live, Mapping):
        for field, value in planned.items():
            yield from _compare(value, live.get(field), f"{path}.{field}")
    elif isinstance(planned, list | tuple) and isinstance(live, list | tuple):
        yield from _compare_lists(planned, live, path)
    elif planned != live and not _same_quantity(planned, live, path):
        yield path, json.dumps(live, sort_keys=True, default=str)


def _compare_lists(planned: Sequence[Any], live: Sequence[Any], path: str) -> Iterator[Difference]:
    if path.endswith(".tolerations"):
        for item in planned:
            if not any(not list(_compare(item, other, path)) for other in live):
                yield f"{path}[{json.dumps(item, sort_keys=True)}]", "null"
        return
    # An empty plan for a list of named things leaves others' entries alone.
    name = _merge_key(planned or live)
    if name is not None:
        named = {item.get(name): item for item in live if isinstance(item, Mapping)}
        for item in planned:
            yield from _compare(item, named.get(item[name]), f"{path}[{name}={item[name]}]")
    elif len(planned) != len(live):
        yield path, json.dumps(live, sort_keys=True, default=str)
    else:
        for index, (left, right) in enumerate(zip(planned, live, strict=True)):
            yield from _compare(left, right, f"{path}[{index}]")


def _merge_key(items: Sequence[Any]) -> str | None:
    for name in _NAMES:
        if all(isinstance(item, Mapping) and name in item for item in items):
            values = [item[name] for item in items]
            return name if len(set(map(str, values))) == len(values) else None
    return None


def _absent(value: Any) -> bool:
    # The API server leaves zero values of its own kinds out.
    return value is None or value is False or (value in ("", 0) or (isinstance(value, dict | list) and not value))


def _same_quantity(left: Any, right: Any, path: str) -> bool:
    if not _QUANTITIES & set(path.split(".")):
        return False
    first, second = _amount(left), _amount(right)
    return first is not None and first == second


def _amount(value: Any) -> Decimal | None:
    match = _QUANTITY.match(str(value))
    if match is None:
        return None
    number, unit = Decimal(match.group(1)), match.group(2) or ""
    return number * (_FACTORS[unit] if unit in _FACTORS else Decimal(f"1{unit}"))
