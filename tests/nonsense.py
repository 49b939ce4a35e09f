"""What anybody may write where something else was expected: for tests of all that reads what others wrote."""

from typing import Any

from hypothesis import strategies as st

Values = st.SearchStrategy[Any]

# Texts that are likely to mean something to somebody who reads them.
_ODD_TEXTS = ("", " ", "0", "-1", "1e999", "NaN", "null", "true", "a" * 300, "../..", "\u0000", "\u202e", "ß", "9" * 40)
_ODD_NUMBERS = (0, -1, 1, 2**31, 2**63 - 1, -(2**63))

NONSENSE: Values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.sampled_from(_ODD_NUMBERS), st.floats(), st.sampled_from(_ODD_TEXTS), st.text()
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=8,
)


def spoiled(fit: Values) -> Values:
    """A fitting value with one place in it replaced by nonsense."""
    return st.tuples(fit, st.integers(0, 10_000), NONSENSE).map(lambda drawn: _spoil(*drawn))


def _spoil(value: Any, place: int, nonsense: Any) -> Any:
    """Replaces what `place` points to: itself, or something inside."""
    children = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    if not children or place % 4 == 0:
        return nonsense
    key = list(children)[place // 4 % len(children)]
    inside = _spoil(value[key], place // 4 // len(children), nonsense)
    if isinstance(value, dict):
        return {**value, key: inside}
    return [*value[:key], inside, *value[key + 1 :]]
