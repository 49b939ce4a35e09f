"""What a replay measured: one record per request, one result per session, and their summary.

Times are wall seconds unless a name or docstring says model; model time = wall time x speed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from retinue.economics.price import input_cost_ratio


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request as the client saw it.

    ``due`` and ``started`` count from the start of the run; ``started - due`` is how late the client itself was.
    ``ttft`` is from ``started`` to the first token (retries included), ``tpot`` the mean time per token after the
    first, ``duration`` from ``started`` to the end of the answer. ``error`` is None exactly if the answer was whole.
    """

    id: str
    session: str
    parent: str | None
    role: str
    model: str
    phase: str
    turn: int
    compaction: bool
    due: float
    started: float
    ttft: float | None
    tpot: float | None
    duration: float
    in_tokens: int
    out_tokens: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    status: int | None
    retries: int
    error: str | None

    @property
    def is_main(self) -> bool:
        """Whether a main agent made the request."""
        return self.parent is None

    def as_json(self, speed: float) -> str:
        """One line: wall times as they are, and the same in model seconds under ``model``."""
        row = asdict(self)
        row["model_seconds"] = {
            name: None if row[name] is None else round(row[name] * speed, 4)
            for name in ("due", "started", "ttft", "tpot", "duration")
        }
        return json.dumps(row, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class SessionResult:
    """How one session ended. ``error`` is None if all its requests were answered."""

    id: str
    parent: str | None
    role: str
    requests: int
    answered: int
    started: float | None
    ended: float | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Median and 95th percentile (nearest rank) in wall seconds; None without data."""

    p50: float | None
    p95: float | None

    def times(self, speed: float) -> Quantiles:
        """In model seconds."""
        return Quantiles(*(None if v is None else v * speed for v in (self.p50, self.p95)))


@dataclass(frozen=True)
class Group:
    """Totals of a set of requests."""

    requests: int
    failed: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    hit_rate: float
    input_cost_ratio: float
    ttft: Quantiles
    tpot: Quantiles
    itl: Quantiles
    """Time between tokens: the requests' mean times weighted by their tokens (chunks of a stream hold several)."""


@dataclass(frozen=True)
class Summary:
    """A whole replay. ``speed`` turns its wall times into model times."""

    speed: float
    duration: float
    sessions: int
    failed_sessions: tuple[SessionResult, ...]
    retries: int
    lateness: Quantiles
    all: Group
    main: Group
    subagents: Group

    def as_dict(self) -> dict[str, object]:
        """For JSON; adds the model-time quantiles next to the wall-time ones."""
        row: dict[str, object] = asdict(self)
        for name in ("all", "main", "subagents"):
            group: Group = getattr(self, name)
            row[f"{name}_model_seconds"] = {
                kind: asdict(quantiles.times(self.speed))
                for kind, quantiles in (("ttft", group.ttft), ("tpot", group.tpot), ("itl", group.itl))
            }
        row["duration_model_seconds"] = self.duration * self.speed
        return row


def summarise(
    records: Sequence[RequestRecord],
    sessions: Sequence[SessionResult],
    *,
    speed: float,
    duration: float,
    write_premium: float = 1.0,
    hit_discount: float = 0.9,
) -> Summary:
    """Summary of a run that took ``duration`` wall seconds. Hit rates are token-weighted over answered requests."""

    def group(members: Iterable[RequestRecord]) -> Group:
        return _group(list(members), write_premium, hit_discount)

    return Summary(
        speed=speed,
        duration=duration,
        sessions=len(sessions),
        failed_sessions=tuple(s for s in sessions if s.error is not None),
        retries=sum(r.retries for r in records),
        lateness=_quantiles([(r.started - r.due, 1) for r in records]),
        all=group(records),
        main=group(r for r in records if r.is_main),
        subagents=group(r for r in records if not r.is_main),
    )


def _group(records: list[RequestRecord], write_premium: float, hit_discount: float) -> Group:
    answered = [r for r in records if r.error is None]
    prompt = sum(r.prompt_tokens for r in answered)
    cached = sum(r.cached_tokens for r in answered)
    hit = cached / prompt if prompt else 0.0
    paces = [(r.tpot, r.completion_tokens - 1) for r in answered if r.tpot is not None]
    return Group(
        requests=len(records),
        failed=len(records) - len(answered),
        prompt_tokens=prompt,
        cached_tokens=cached,
        completion_tokens=sum(r.completion_tokens for r in answered),
        hit_rate=hit,
        input_cost_ratio=input_cost_ratio(hit, write_premium=write_premium, hit_discount=hit_discount),
        ttft=_quantiles([(r.ttft, 1) for r in answered if r.ttft is not None]),
        tpot=_quantiles([(pace, 1) for pace, _ in paces]),
        itl=_quantiles(paces),
    )


def _quantiles(weighted: Sequence[tuple[float, int]]) -> Quantiles:
    return Quantiles(quantile(weighted, 0.5), quantile(weighted, 0.95))


def quantile(weighted: Sequence[tuple[float, int]], q: float) -> float | None:
    """Nearest-rank quantile of (value, weight) pairs: the least value that covers ``q`` of the weight."""
    ordered = sorted(weighted)
    needed = q * sum(weight for _, weight in ordered)
    covered = 0
    for value, weight in ordered:
        covered += weight
        if covered >= needed:
            return value
    return None
