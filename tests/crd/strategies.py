"""Objects of a custom resource that its schema takes."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

from retinue.api.schema import ABSENT, ListType, Node, NodeType, violations

from ..nonsense import NONSENSE, Values


def fitting(node: Node, known: Mapping[str, Sequence[Any]], field: str = "") -> Values:
    """Values that fit a schema node but for its CEL rules.

    known: by the name of a field, values that lead somewhere, such as names of objects that exist; they are drawn as
    often as all others together.
    """
    anything = _fitting(node, known)
    likely = [value for value in known.get(field, ()) if not list(violations(node, value, field))]
    return st.one_of(st.sampled_from(likely), anything) if likely else anything


def blended(good: Any, drawn: Any, share: float, chance: random.Random) -> Any:
    """A good value with about this share of its parts, at any depth, as they were drawn."""
    if isinstance(good, dict) and isinstance(drawn, dict):
        kept = {key: blended(good[key], drawn[key], share, chance) for key in good if key in drawn}
        return {**good, **kept, **{key: drawn[key] for key in drawn if key not in good and chance.random() < share}}
    if isinstance(good, list) and isinstance(drawn, list) and good and drawn and isinstance(good[0], dict):
        return [blended(good[0], drawn[0], share, chance), *good[1:]]
    return drawn if chance.random() < share else good


def _fitting(node: Node, known: Mapping[str, Sequence[Any]]) -> Values:
    match node.type:
        case NodeType.BOOLEAN:
            return st.booleans()
        case NodeType.INTEGER:
            low = -(2**63) if node.least is None else node.least
            high = 2**63 - 1 if node.most is None else node.most
            return st.one_of(st.integers(low, min(high, low + 8)), st.integers(low, high))
        case NodeType.STRING if node.enum:
            return st.sampled_from(node.enum)
        case NodeType.STRING if node.pattern is not None:
            least, most = node.least or 0, 4096 if node.most is None else node.most
            texts = st.from_regex(node.pattern.regex, fullmatch=True)
            return texts.filter(lambda text: least <= len(text) <= most)
        case NodeType.STRING:
            most = 30 if node.most is None else min(node.most, 30)
            return st.text(min_size=node.least or 0, max_size=most)
        case NodeType.ARRAY:
            return _lists(node, known)
    if node.values is not None:
        keys = st.text(alphabet="abc-./1", min_size=1, max_size=6)
        return st.dictionaries(keys, fitting(node.values, known), min_size=node.least or 0, max_size=3)
    if node.preserve_unknown:
        return st.dictionaries(st.sampled_from(["metadata", "spec", "x"]), NONSENSE, max_size=2)
    required = {name: fitting(node.properties[name], known, name) for name in node.required}
    optional = {name: fitting(child, known, name) for name, child in node.properties.items() if name not in required}
    return st.fixed_dictionaries(required, optional=optional)


def _lists(node: Node, known: Mapping[str, Sequence[Any]]) -> Values:
    assert node.items is not None
    items = fitting(node.items, known)
    least = node.least or 0
    most = max(least, min(3, 3 if node.most is None else node.most))
    if node.list_type is ListType.MAP:
        keys = node.list_keys
        return st.lists(
            items, min_size=least, max_size=most, unique_by=lambda item: tuple(str(item.get(key)) for key in keys)
        )
    return st.lists(items, min_size=least, max_size=most, unique_by=str if node.list_type is ListType.SET else None)


def defaulted(node: Node, value: Any) -> Any:
    """The value as the API server stores it: absent fields that have a default get it."""
    if node.type is NodeType.OBJECT and node.properties and isinstance(value, dict):
        filled = {name: child.default for name, child in node.properties.items() if child.default is not ABSENT}
        return {
            name: defaulted(node.properties[name], inner) if name in node.properties else inner
            for name, inner in {**filled, **value}.items()
        }
    if node.type is NodeType.ARRAY and node.items is not None and isinstance(value, list):
        return [defaulted(node.items, item) for item in value]
    return value
