"""What can go wrong between the operator and Prometheus has a name, a bound and a one-line message."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from retinue.autoscaling.signals import Query, Scope, Subject
from retinue_emulator.loopback import eventually
from retinue_emulator.loopback.ports import pick_ports
from retinue_operator.controllers.measure import RETRY_SECONDS, Measurer
from retinue_operator.prometheus.client import (
    BadAnswer,
    Denied,
    PrometheusClient,
    PrometheusError,
    PrometheusSettings,
    Refused,
    TooLarge,
    TooSlow,
    Unreachable,
)
from retinue_operator.prometheus.poller import collect

Handler = Callable[[web.Request], Awaitable[web.Response]]
ONE = '{"status":"success","data":{"resultType":"vector","result":[{"metric":{"role":"r"},"value":[1.5,"2"]}]}}'


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/prefix/api/v1/query", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/prefix/"
    finally:
        await runner.cleanup()


def answering(text: str, status: int = 200) -> Handler:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(text=text, status=status)

    return handler


@pytest.mark.parametrize(
    ("text", "status", "error"),
    [
        ("<html>welcome</html>", 200, BadAnswer),
        ("bad gateway", 502, BadAnswer),
        ("[]", 200, BadAnswer),
        ('{"status":"success"}', 200, BadAnswer),
        ('{"status":"success","data":{"resultType":"vector","result":[{"metric":{}}]}}', 200, BadAnswer),
        (
            '{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[1,"x"]}]}}',
            200,
            BadAnswer,
        ),
        ('{"status":"error","errorType":"timeout","error":"query timed out"}', 503, Refused),
        ('{"status":"error","errorType":"bad_data","error":"parse error"}', 400, Refused),
        ("no", 401, Denied),
        ("no", 403, Denied),
        ("x" * 5000, 200, TooLarge),
    ],
)
async def test_every_odd_answer_has_its_class(text: str, status: int, error: type[PrometheusError]) -> None:
    async with (
        serving(answering(text, status)) as url,
        PrometheusClient(PrometheusSettings(url, max_bytes=4000)) as client,
    ):
        with pytest.raises(error) as raised:
            await client.query("up")
        assert "\n" not in str(raised.value)


async def test_a_redirect_is_not_followed_with_the_credentials() -> None:
    async def redirect(_: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": "http://127.0.0.1:9/"})

    async with serving(redirect) as url, PrometheusClient(PrometheusSettings(url, bearer="secret")) as client:
        with pytest.raises(BadAnswer, match="302"):
            await client.query("up")


async def test_a_silent_server_is_given_up() -> None:
    async def silent(_: web.Request) -> web.Response:
        await asyncio.Event().wait()
        return web.Response()

    async with serving(silent) as url, PrometheusClient(PrometheusSettings(url, timeout=0.2)) as client:
        with pytest.raises(TooSlow, match=r"0\.2 s"):
            await client.query("up")


async def test_nobody_there_is_unreachable() -> None:
    url = f"http://127.0.0.1:{pick_ports(1)[0]}"
    async with PrometheusClient(PrometheusSettings(url)) as client:
        with pytest.raises(Unreachable, match=url):
            await client.query("up")
        poll = await collect(client, [query(f"role.{number}", f"up{number}") for number in range(30)])
        assert poll.error is not None
        assert url in poll.error


async def test_credentials_go_into_the_header(tmp_path: Path) -> None:
    seen: list[str | None] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        seen.append(request.headers.get("X-Scope-OrgID"))
        return web.Response(text=ONE)

    token = tmp_path / "token"
    token.write_text("first\n")
    async with serving(handler) as url:
        async with PrometheusClient(PrometheusSettings(url, basic=("me", "pass"))) as client:
            await client.query("up")
        settings = PrometheusSettings(url, bearer_file=token, headers={"X-Scope-OrgID": "team"})
        async with PrometheusClient(settings) as client:
            await client.query("up")
            token.write_text("second\n")
            await client.query("up")
            token.unlink()
            with pytest.raises(Denied, match="cannot be read"):
                await client.query("up")
    assert seen == ["Basic bWU6cGFzcw==", None, "Bearer first", "team", "Bearer second", "team"]


def test_secrets_stay_out_of_the_representation() -> None:
    assert "secret" not in repr(PrometheusSettings("http://p", bearer="secret"))


def test_contradicting_credentials_are_refused() -> None:
    with pytest.raises(ValueError, match="at most one"):
        PrometheusSettings("http://p", bearer="x", basic=("a", "b"))


def test_an_address_without_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match="http://"):
        PrometheusSettings("prometheus:9090")


def query(name: str, promql: str, *, age: str = "age", idle: bool = False) -> Query:
    return Query(name, Subject.ROLE, promql, age, idle)


def vector(value: str) -> str:
    return ONE.replace('"2"', f'"{value}"')


async def test_a_poll_keeps_what_was_answered_and_names_what_was_not() -> None:
    answers = {
        "age": vector("3.5"),
        "good": vector("7"),
        "infinite": vector("+Inf"),
        "nothing": '{"status":"success","data":{"resultType":"vector","result":[]}}',
        "bad": '{"status":"error","errorType":"execution","error":"too many samples"}',
    }
    asked: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        text = str((await request.post())["query"])
        asked.append(text)
        return web.Response(text=answers[text])

    async with serving(handler) as url, PrometheusClient(PrometheusSettings(url)) as client:
        poll = await collect(
            client,
            [
                query("role.good", "good"),
                query("role.bad", "bad"),
                query("role.gauge", "nothing"),
                query("role.ratio", "nothing", idle=True),
                query("role.quotient", "infinite"),
                query("role.unknown_age", "good", age="nothing"),
            ],
        )
    assert sorted(asked) == sorted(answers)
    assert poll.error is None
    assert list(poll.failures) == ["role.bad"]
    assert "too many samples" in poll.failures["role.bad"]
    assert [(sample.value, sample.age) for sample in poll.samples["role.good"]] == [(7.0, 3.5)]
    assert poll.samples["role.gauge"] == []
    assert [(str(sample.value), sample.age) for sample in poll.samples["role.ratio"]] == [("nan", 3.5)]
    assert poll.samples["role.quotient"] == []
    assert poll.samples["role.unknown_age"] == []


async def test_a_poll_ends_at_its_deadline_with_what_it_has() -> None:
    async def handler(request: web.Request) -> web.Response:
        if (await request.post())["query"] == "slow":
            await asyncio.Event().wait()
        return web.Response(text=vector("1"))

    async with serving(handler) as url, PrometheusClient(PrometheusSettings(url)) as client:
        poll = await collect(client, [query("role.fast", "fast"), query("role.slow", "slow")], deadline=0.5)
    assert [sample.value for sample in poll.samples["role.fast"]] == [1.0]
    assert list(poll.failures) == ["role.slow"]


async def test_a_poll_without_any_answer_is_silent_and_one_with_refusals_is_not() -> None:
    nobody = f"http://127.0.0.1:{pick_ports(1)[0]}"
    async with PrometheusClient(PrometheusSettings(nobody)) as client:
        poll = await collect(client, [query("role.one", "one"), query("role.two", "two")])
    assert poll.silent
    assert poll.error is not None
    assert "does not answer" in poll.error
    async with serving(answering("no", 403)) as url, PrometheusClient(PrometheusSettings(url)) as client:
        poll = await collect(client, [query("role.one", "one")])
    assert not poll.silent
    assert poll.error is not None
    assert "refuses the credentials" in poll.error


async def test_nobody_waits_for_a_prometheus_that_says_nothing_and_its_return_is_noticed() -> None:
    asked, released = 0, asyncio.Event()

    async def handler(_: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        await released.wait()
        return web.Response(text=vector("1"))

    scope = Scope(namespace="agents", agent_pool="", pools=(), tiers=("cold",), window=60.0)
    async with serving(handler) as url, PrometheusClient(PrometheusSettings(url, timeout=0.1)) as client:
        measurer = Measurer(client)
        first = await measurer.measure(scope, 0.0, 1.0)
        assert first.error is not None
        before = asked

        # Neither the age of the answer nor the number of those who ask makes anybody wait, until it is tried again.
        others = [await measurer.measure(scope, second / 10, 0.0) for second in range(40)]
        assert {other.error for other in others} == {first.error}
        assert asked == before

        released.set()
        assert (await measurer.measure(scope, RETRY_SECONDS, 1.0)).error == first.error

        async def back() -> bool:
            return (await measurer.measure(scope, RETRY_SECONDS, 1.0)).error is None

        await eventually(back, what="the answers are seen")
    assert asked > before


async def test_what_was_sent_to_prometheus_does_not_come_back_in_a_message(tmp_path: Path) -> None:
    async def repeating(request: web.Request) -> web.Response:
        return web.json_response({"status": "error", "errorType": "bad_data", "error": str(dict(request.headers))})

    token = tmp_path / "token"
    token.write_text("a-secret-token\n")
    async with serving(repeating) as url:
        settings = PrometheusSettings(url, bearer_file=token, headers={"X-Secret": "another-secret"})
        async with PrometheusClient(settings) as client:
            with pytest.raises(Refused) as raised:
                await client.query("up")
    assert "(not shown)" in str(raised.value)
    assert "a-secret-token" not in str(raised.value)
    assert "another-secret" not in str(raised.value)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"two\nlines", "naïve".encode()])
async def test_a_file_that_can_be_no_token_is_told_in_one_line(content: bytes, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_bytes(content)
    async with serving(answering(ONE)) as url, PrometheusClient(PrometheusSettings(url, bearer_file=token)) as client:
        with pytest.raises(Denied) as raised:
            await client.query("up")
    assert "\n" not in str(raised.value)


def test_an_address_with_a_password_is_refused_because_it_is_shown() -> None:
    with pytest.raises(ValueError, match="must not hold a user or password"):
        PrometheusSettings("https://me:secret@prometheus:9090")
