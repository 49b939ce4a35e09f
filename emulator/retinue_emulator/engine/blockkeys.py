"""Names of KV blocks as integers: a (scope, id) pair becomes one int, and consecutive ids stay consecutive."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

Runs = Sequence[tuple[int, int]]
"""Block ids as (first id, count) runs."""

_SMALL_BITS = 40
_WIDE_BITS = 64
_MAX_SCOPES = 1 << (_WIDE_BITS - _SMALL_BITS)


class BlockKeys:
    """Interns scopes and maps blocks to int keys and back.

    Ids below 2^40 (traces number their blocks) give keys that fit a machine word; ids up to 2^64 (hashes of text) work
    too, with wider ints. Two scopes never share a key.
    """

    def __init__(self) -> None:
        self._index: dict[str, int] = {}
        self._scopes: list[str] = []

    def ranges(self, scope: str, runs: Runs) -> list[range]:
        """Key ranges of the runs, in order.

        Raises:
            ValueError: a negative id or count, or ids beyond 2^64.
        """
        index = self._intern(scope)
        small_base, wide_base = index << _SMALL_BITS, (index + 1) << _WIDE_BITS
        out = []
        for first, count in runs:
            if first < 0 or count < 0 or first + count > 1 << _WIDE_BITS:
                raise ValueError(f"block run ({first}, {count}) is outside 0..2^64")
            if first + count <= 1 << _SMALL_BITS:
                out.append(range(small_base + first, small_base + first + count))
            else:
                out.append(range(wide_base + first, wide_base + first + count))
        return out

    def runs(self, keys: Iterable[int]) -> list[tuple[str, list[tuple[int, int]]]]:
        """Keys back to runs, grouped by scope where neighbours share one; the order is kept."""
        grouped: list[tuple[str, list[tuple[int, int]]]] = []
        for key in keys:
            scope, block = self._split(key)
            if not grouped or grouped[-1][0] != scope:
                grouped.append((scope, [(block, 1)]))
                continue
            runs = grouped[-1][1]
            first, count = runs[-1]
            if first + count == block:
                runs[-1] = (first, count + 1)
            else:
                runs.append((block, 1))
        return grouped

    def _intern(self, scope: str) -> int:
        index = self._index.get(scope)
        if index is None:
            index = len(self._scopes)
            if index >= _MAX_SCOPES:
                raise ValueError(f"more than {_MAX_SCOPES} scopes in one cache")
            self._index[scope] = index
            self._scopes.append(scope)
        return index

    def _split(self, key: int) -> tuple[str, int]:
        wide = key >> _WIDE_BITS
        if wide:
            return self._scopes[wide - 1], key - (wide << _WIDE_BITS)
        index = key >> _SMALL_BITS
        return self._scopes[index], key - (index << _SMALL_BITS)


def flatten(ranges: Sequence[range]) -> list[int]:
    """All keys of the ranges, in order."""
    return list(chain.from_iterable(ranges))
