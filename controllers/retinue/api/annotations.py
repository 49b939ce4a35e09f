"""The annotations that stand on one type in a model, each taken by whoever can express it, and none left over."""

from collections.abc import Iterable
from typing import Annotated, Any, TypeVar, get_args, get_origin

from annotated_types import Ge, Le, MaxLen, MinLen
from pydantic.fields import FieldInfo

from retinue.api.markers import Cel
from retinue.api.schema import SchemaError

_Mark = TypeVar("_Mark")


def unwrap(annotation: Any, path: str) -> tuple[Any, tuple[object, ...]]:
    """The bare type and what is annotated to it."""
    if get_origin(annotation) is Annotated:
        kind, *marks = get_args(annotation)
        return kind, flatten(marks, path)
    return annotation, ()


def flatten(marks: Iterable[object], path: str) -> tuple[object, ...]:
    """pydantic's Field inside a nested Annotated carries its bounds as metadata of its own."""
    flat: list[object] = []
    for mark in marks:
        if not isinstance(mark, FieldInfo):
            flat.append(mark)
        elif not mark.is_required():
            raise SchemaError(path, "a default belongs to the field, not into the type")
        else:
            flat.extend(mark.metadata)
    return tuple(flat)


class Marks:
    """The annotations of one type; what nobody asked for by the end cannot be expressed."""

    def __init__(self, marks: tuple[object, ...], path: str) -> None:
        self._left = list(marks)
        self.path = path

    def take(self, kind: type[_Mark]) -> _Mark | None:
        found = [mark for mark in self._left if isinstance(mark, kind)]
        if len(found) > 1:
            raise SchemaError(self.path, f"{kind.__name__} is given {len(found)} times")
        if not found:
            return None
        self._left.remove(found[0])
        return found[0]

    def bound(self, kind: type[Ge] | type[Le] | type[MinLen] | type[MaxLen], word: str) -> int | None:
        mark = self.take(kind)
        limit = None if mark is None else getattr(mark, word)
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool)):
            raise SchemaError(self.path, f"{word} must be an int, not {limit!r}")
        return limit

    def most(self, limit: int | None, what: str, remedy: str) -> int:
        if limit is None:
            raise SchemaError(self.path, f"a {what} needs an upper bound: {remedy}")
        return limit

    def rules(self) -> tuple[Cel, ...]:
        rules = tuple(mark for mark in self._left if isinstance(mark, Cel))
        self._left = [mark for mark in self._left if not isinstance(mark, Cel)]
        return rules

    def finish(self) -> None:
        if self._left:
            raise SchemaError(self.path, f"{self._left[0]!r} cannot be expressed on this type")
