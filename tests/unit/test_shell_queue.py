"""The work queue in a real event loop: workers, retries, and a stop that lets running handlers finish."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from retinue.plan import Key
from retinue_operator.queue import Handler, Next, WorkQueue
from retinue_operator.schedule import Pace

FAST = Pace(min_gap=0.0, base_delay=0.001, max_delay=0.01)
A, B = Key("Toy", "ns", "a"), Key("Toy", "ns", "b")


@asynccontextmanager
async def running(handler: Handler, workers: int = 4, pace: Pace = FAST) -> AsyncIterator[WorkQueue]:
    queue = WorkQueue(handler, workers=workers, pace=pace)
    task = asyncio.create_task(queue.run())
    try:
        yield queue
    finally:
        await queue.stop(5)
        await task


async def within(seconds: float, condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - any condition, not only those that have an event
            await asyncio.sleep(0.001)


def counting(counts: Counter[Key], answer: Callable[[int], Next] = lambda _: Next()) -> Handler:
    async def handle(key: Key) -> Next:
        counts[key] += 1
        return answer(counts[key])

    return handle


async def test_one_key_never_runs_twice_at_once_while_others_do() -> None:
    inside: Counter[Key] = Counter()
    most: Counter[Key] = Counter()
    together = 0

    async def handle(key: Key) -> Next:
        nonlocal together
        inside[key] += 1
        most[key] = max(most[key], inside[key])
        together = max(together, sum(inside.values()))
        await asyncio.sleep(0.005)
        inside[key] -= 1
        return Next()

    async with running(handle) as queue:
        for _ in range(20):
            queue.add(A)
            queue.add(B)
            await asyncio.sleep(0.001)
        await within(5, lambda: queue.busy() == 0 and queue.depth() == 0)
    assert most == {A: 1, B: 1}
    assert together == 2


async def test_an_add_during_the_run_is_not_lost() -> None:
    counts: Counter[Key] = Counter()
    gate = asyncio.Event()

    async def handle(key: Key) -> Next:
        counts[key] += 1
        await gate.wait()
        return Next()

    async with running(handle) as queue:
        queue.add(A)
        await within(5, lambda: counts[A] == 1)
        queue.add(A)
        queue.add(A)
        gate.set()
        await within(5, lambda: counts[A] == 2)
    assert counts[A] == 2


async def test_a_failing_key_is_retried_until_it_succeeds() -> None:
    counts: Counter[Key] = Counter()
    async with running(counting(counts, lambda n: Next(failed=n < 4))) as queue:
        queue.add(A)
        await within(5, lambda: counts[A] == 4)


async def test_a_handler_that_raises_counts_as_failed_and_harms_no_other_key() -> None:
    counts: Counter[Key] = Counter()

    async def handle(key: Key) -> Next:
        counts[key] += 1
        if key == A:
            raise RuntimeError("boom")
        return Next()

    async with running(handle) as queue:
        queue.add(A)
        queue.add(B)
        await within(5, lambda: counts[A] >= 3 and counts[B] == 1)


async def test_requeue_after_runs_again_without_counting_as_failure() -> None:
    counts: Counter[Key] = Counter()
    async with running(counting(counts, lambda n: Next(after=0.001 if n < 5 else None))) as queue:
        queue.add(A)
        await within(5, lambda: counts[A] == 5)


async def test_no_more_handlers_than_workers_run() -> None:
    most = 0
    inside = 0

    async def handle(_: Key) -> Next:
        nonlocal most, inside
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.002)
        inside -= 1
        return Next()

    async with running(handle, workers=3) as queue:
        for number in range(30):
            queue.add(Key("Toy", "ns", str(number)))
        await within(5, lambda: queue.busy() == 0 and queue.depth() == 0)
    assert most == 3


async def stopping(finish: Callable[[asyncio.Event], Awaitable[None]], grace: float) -> tuple[bool, list[str]]:
    story: list[str] = []
    started = asyncio.Event()

    async def handle(_: Key) -> Next:
        started.set()
        try:
            await finish(started)
        except asyncio.CancelledError:
            story.append("cancelled")
            raise
        story.append("finished")
        return Next()

    queue = WorkQueue(handle, workers=1, pace=FAST)
    task = asyncio.create_task(queue.run())
    queue.add(A)
    await started.wait()
    queue.add(B)
    clean = await queue.stop(grace)
    await task
    return clean, story


async def test_a_graceful_stop_lets_the_running_handler_finish_and_starts_no_other() -> None:
    assert await stopping(lambda _: asyncio.sleep(0.02), grace=5) == (True, ["finished"])


async def test_after_the_grace_running_handlers_are_cancelled() -> None:
    assert await stopping(lambda _: asyncio.sleep(60), grace=0.01) == (False, ["cancelled"])
