"""One poll: all queries of an AgentPool at once, each number with the age of the scrape behind it."""

import asyncio
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from retinue.autoscaling.signals import Query, Sample

from .client import Point, PrometheusClient, PrometheusError, TooSlow, Unreachable


@dataclass(frozen=True)
class Poll:
    """What a poll found out. A subject or query without a sample is missing: never zero."""

    samples: Mapping[str, list[Sample]] = field(default_factory=dict)
    """By the name of the query."""
    error: str | None = None
    """Why nothing is known, when not a single query was answered."""
    silent: bool = False
    """Whether Prometheus said nothing at all: a refusal is an answer, too."""
    failures: Mapping[str, str] = field(default_factory=dict)
    """By the name of the query: why it has no result, although others have."""


async def collect(
    client: PrometheusClient, queries: Iterable[Query], *, concurrency: int = 8, deadline: float = 10.0
) -> Poll:
    """Runs all queries, each different expression once, and puts values and ages together.

    Prometheus stamps an instant query's result with the time of the question, so the age comes from queries of its own.
    A value whose age is unknown is left out. Never raises a PrometheusError: failing is a result here. `deadline` is
    in seconds for all queries together; what has no answer by then failed.
    """
    wanted = tuple(queries)
    expressions = dict.fromkeys(text for query in wanted for text in (query.age, query.promql))
    answers = await _ask_all(client, expressions, concurrency, deadline)
    failed = [answer for answer in answers.values() if isinstance(answer, PrometheusError)]
    if wanted and len(failed) == len(expressions):
        silent = all(isinstance(error, Unreachable | TooSlow) for error in failed)
        return Poll(error=f"Prometheus: {failed[0]}", silent=silent)
    samples: dict[str, list[Sample]] = {}
    failures: dict[str, str] = {}
    for query in wanted:
        values, ages = answers[query.promql], answers[query.age]
        if isinstance(values, PrometheusError) or isinstance(ages, PrometheusError):
            failures[query.name] = f"Prometheus: {values if isinstance(values, PrometheusError) else ages}"
            continue
        # Two engines answer under one name.
        samples.setdefault(query.name, []).extend(_join(query, values, ages))
    return Poll(samples=samples, failures=failures)


async def _ask_all(
    client: PrometheusClient, expressions: Iterable[str], concurrency: int, deadline: float
) -> dict[str, list[Point] | PrometheusError]:
    late = TooSlow(f"no answer within {deadline:g} s")
    answers: dict[str, list[Point] | PrometheusError] = dict.fromkeys(expressions, late)
    places = asyncio.Semaphore(concurrency)
    unreachable: Unreachable | None = None

    async def ask(text: str) -> None:
        nonlocal unreachable
        async with places:
            if unreachable is not None:
                # Dozens of time limits one after another would outlast the evaluation interval.
                answers[text] = unreachable
                return
            try:
                answers[text] = await client.query(text)
            except Unreachable as error:
                unreachable = answers[text] = error
            except PrometheusError as error:
                answers[text] = error

    try:
        async with asyncio.timeout(deadline), asyncio.TaskGroup() as group:
            for text in answers:
                group.create_task(ask(text))
    except TimeoutError:
        # Those that have an answer keep it; the others are late.
        return answers
    return answers


def _join(query: Query, values: list[Point], ages: list[Point]) -> list[Sample]:
    known = {key: point for point in ages if (key := query.key(point.labels)) is not None}
    found: list[Sample] = []
    seen: set[str] = set()
    for point in values:
        key = query.key(point.labels)
        if key is None or key not in known:
            continue
        seen.add(key)
        # An infinite quotient says as little as none.
        value = point.value if math.isfinite(point.value) else math.nan
        if query.idle or not math.isnan(value):
            found.append(Sample(point.labels, value, max(0.0, known[key].value)))
    if query.idle:
        quiet = (point for key, point in known.items() if key not in seen)
        found.extend(Sample(point.labels, math.nan, max(0.0, point.value)) for point in quiet)
    return found
