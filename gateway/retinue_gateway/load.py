"""What is running and queued now, per instance and per role, counted from the gateway's own requests."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, Self, TypeVar

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Load:
    """in_flight: requests; queued_tokens: prompt tokens of those whose prompt is not known to be computed."""

    in_flight: int = 0
    queued_tokens: int = 0


IDLE = Load()


class Ticket(Generic[K]):
    """One request's share of a load; leaving the `with` block takes it out, and so does nothing else."""

    def __init__(self, book: "LoadBook[K]", key: K, tokens: int) -> None:
        self._book = book
        self._key = key
        self._tokens = tokens

    def __enter__(self) -> Self:
        self._book.add(self._key, 1, self._tokens)
        return self

    def __exit__(self, *_: object) -> None:
        self.prompt_done()
        self._book.add(self._key, -1, 0)

    def prompt_done(self) -> None:
        """The prompt is no longer queued. Further calls change nothing."""
        self._book.add(self._key, 0, -self._tokens)
        self._tokens = 0


class LoadBook(Generic[K]):
    """Loads by key. A key without requests takes no memory."""

    def __init__(self) -> None:
        self._loads: dict[K, Load] = {}

    def of(self, key: K) -> Load:
        return self._loads.get(key, IDLE)

    def enter(self, key: K, tokens: int) -> Ticket[K]:
        """A ticket for one request with that many prompt tokens to compute; use it in a `with` statement."""
        return Ticket(self, key, tokens)

    def add(self, key: K, in_flight: int, tokens: int) -> None:
        before = self.of(key)
        after = Load(before.in_flight + in_flight, before.queued_tokens + tokens)
        if after == IDLE:
            self._loads.pop(key, None)
        else:
            self._loads[key] = after

    def total_in_flight(self) -> int:
        return sum(load.in_flight for load in self._loads.values())
