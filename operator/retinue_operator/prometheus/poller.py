"""One poll: all queries of an AgentPool at once, each number with the age of the scrape behind it."""

import asyncio
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from retinue.autoscaling.signals import Query, Sample

from .client import Point, PrometheusClient, PrometheusError, Unreachable


@dataclass(frozen=True)
class Poll:
    """What a poll found out. A subject or query without a sample is missing: never zero."""

    samples: Mapping[str, list[Sample]] = field(default_factory=dict)
    """By the name of the query."""
    error: str | None = None
    """Why nothing is known, when not a single query was answered."""
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
    failed = {text: answer for text, answer in answers.items() if isinstance(answer, str)}
    if wanted and len(failed) == len(expressions):
        return Poll(error=next(iter(failed.values())))
    samples: dict[str, list[Sample]] = {}
    failures: dict[str, str] = {}
    for query in wanted:
        values, ages = answers[query.promql], answers[query.age]
        reason = values if isinstance(values, str) else ages
        if isinstance(values, str) or isinstance(ages, str):
            failures[query.name] = str(reason)
            continue
        # Two engines answer under one name.
        samples.setdefault(query.name, []).extend(_join(query, values, ages))
    return Poll(samples=samples, failures=failures)


async def _ask_all(
    client: PrometheusClient, expressions: Iterable[str], concurrency: int, deadline: float
) -> dict[str, list[Point] | str]:
    answers: dict[str, list[Point] | str] = dict.fromkeys(expressions, f"no answer within {deadline:g} s")
    places = asyncio.Semaphore(concurrency)
    unreachable: str | None = None

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
                unreachable = answers[text] = f"Prometheus: {error}"
            except PrometheusError as error:
                answers[text] = f"Prometheus: {error}"

    try:
        async with asyncio.timeout(deadline), asyncio.TaskGroup() as group:
            for text in answers:
                group.create_task(ask(text))
    except TimeoutError:
        # Those that have an answer keep it; the others still hold the text from above.
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
