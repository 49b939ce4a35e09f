"""Tenants of the gateway: who may call what, and that neither sessions nor cached prefixes of one are another's."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from retinue.access.tokens import Tenant
from retinue_emulator.loopback import eventually
from retinue_gateway.callers import ANYBODY, CacheIsolation, Caller, cache_salt
from retinue_gateway.directory import AgentPoolView, Instance, RoleView, build_directory
from retinue_gateway.errors import GatewayError
from retinue_gateway.keys import PoolKey, Stage
from retinue_gateway.server import Gateway
from retinue_gateway.settings import GatewaySettings

from ..certificates import write_pair
from .gatewayworld import CHAT, chat, world

TOKENS = {"one": "one-0123456789abcdef", "two": "two-0123456789abcdef", "ops": "ops-0123456789abcdef"}
NAMESPACES = {"one": ["agents"], "two": ["agents"], "ops": ["*"]}


def write_tokens(folder: Path, groups: Mapping[str, str] | None = None, tokens: Mapping[str, str] = TOKENS) -> Path:
    entries = [
        {"name": name, "namespaces": NAMESPACES.get(name, ["elsewhere"]), "tokens": [token]}
        | ({"cacheGroup": groups[name]} if groups and name in groups else {})
        for name, token in tokens.items()
    ]
    file = folder / "tokens.yaml"
    file.write_text(json.dumps({"tenants": entries}))
    return file


def bearer(tenant: str, **headers: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKENS[tenant]}", **headers}


async def test_without_a_known_token_nothing_is_served_and_no_name_is_told(tmp_path: Path) -> None:
    async with world(tokens_file=write_tokens(tmp_path)) as w:
        for headers in ({}, {"Authorization": "Bearer wrong-0123456789abc"}, {"Authorization": "Basic b25lOng="}):
            for path in (CHAT, "/v1/chat/completions", "/nobody/here/v1/chat/completions"):
                status, body, answered = await w.post(path=path, headers=headers)
                assert (status, body["error"]["code"]) == (401, "invalid_api_key")
                assert body["error"]["type"] == "authentication_error"
                assert answered["WWW-Authenticate"] == "Bearer"
                assert "coder" not in json.dumps(body)
            async with w.client.get("/agents/coder/v1/models", headers=headers) as response:
                assert response.status == 401
        assert (await w.post(headers=bearer("one")))[0] == 200


async def test_an_agent_pool_outside_a_tenants_namespaces_does_not_exist_for_it(tmp_path: Path) -> None:
    tokens = write_tokens(tmp_path, tokens={**TOKENS, "foreign": "foreign-0123456789ab"})
    async with world(tokens_file=tokens) as w:
        for path in (CHAT, "/v1/chat/completions"):
            status, body, _ = await w.post(path=path, headers={"Authorization": "Bearer foreign-0123456789ab"})
            assert (status, body["error"]["message"].endswith("known: none")) == (404, True)
        # The only one that it may see needs no name.
        assert (await w.post(path="/v1/chat/completions", headers=bearer("ops")))[0] == 200


async def test_engines_get_neither_the_callers_token_nor_hop_by_hop_headers(tmp_path: Path) -> None:
    key = tmp_path / "engine"
    key.write_text("engine-key\n")
    hop = {"Connection": "close, x-drop", "x-drop": "1", "TE": "trailers", "Proxy-Authorization": "Basic eDp5"}
    async with world(tokens_file=write_tokens(tmp_path), engine_token_file=key) as w:
        assert (await w.post("s1", headers=bearer("one", Cookie="a=b", **hop)))[0] == 200
        got = w.engines["coder-primary-decode-0"].headers[0]
    assert got["authorization"] == "Bearer engine-key"
    assert got["x-session-id"] == "s1"
    assert not {"cookie", "te", "x-drop", "proxy-authorization", "connection"} & got.keys()


@pytest.mark.parametrize("name", ["authorization", "cookie", "connection", "transfer-encoding", "host"])
def test_no_setting_can_forward_credentials_or_hop_by_hop_headers(name: str) -> None:
    for field in ("forward_headers", "session_headers"):
        with pytest.raises(ValueError, match=f"{name} must not reach engines"):
            GatewaySettings(**{field: [name]})  # type: ignore[arg-type]


async def test_two_tenants_with_the_same_session_id_have_two_sessions(tmp_path: Path) -> None:
    async with world(decode=2, tokens_file=write_tokens(tmp_path)) as w:
        mine = {(await w.post("s1", headers=bearer("one")))[2]["x-retinue-decode-instance"] for _ in range(3)}
        yours = {(await w.post("s1", headers=bearer("two")))[2]["x-retinue-decode-instance"] for _ in range(3)}
        # Placed by load, not by what the other session has: each went to an instance of its own.
        assert len(mine) == len(yours) == 1
        assert mine != yours
        assert {(session.key.tenant, session.key.id) for session in w.gateway.sessions} == {
            ("one", "s1"),
            ("two", "s1"),
        }


async def test_a_parent_is_looked_for_among_the_tenants_own_sessions(tmp_path: Path) -> None:
    async with world(tokens_file=write_tokens(tmp_path)) as w:
        await w.post("parent", headers=bearer("one"))
        for tenant in ("one", "two"):
            await w.post("child", headers=bearer(tenant, **{"x-parent-session-id": "parent"}))
        found = {
            session.key.tenant: w.gateway.sessions.parent_of(session)
            for session in w.gateway.sessions
            if session.key.id == "child"
        }
        assert found["one"] is not None
        assert found["one"].key.tenant == "one"
        assert found["two"] is None


async def test_final_of_one_tenant_does_not_end_the_others_session(tmp_path: Path) -> None:
    async with world(tokens_file=write_tokens(tmp_path)) as w:
        await w.post("s1", headers=bearer("one"))
        await w.post("s1", headers=bearer("two", **{"x-session-final": "true"}))
        assert [session.key.tenant for session in w.gateway.sessions if session.open] == ["one"]


async def test_tokens_are_exchanged_without_a_restart(tmp_path: Path) -> None:
    async with world(tokens_file=write_tokens(tmp_path)) as w:
        write_tokens(tmp_path, tokens={"one": "one-fedcba9876543210"})
        w.gateway.credentials.refresh()
        assert (await w.post(headers=bearer("one")))[0] == 401
        assert (await w.post(headers={"Authorization": "Bearer one-fedcba9876543210"}))[0] == 200
        (tmp_path / "tokens.yaml").write_text("nonsense")
        w.gateway.credentials.refresh()
        assert (await w.post(headers={"Authorization": "Bearer one-fedcba9876543210"}))[0] == 200


async def test_metrics_want_a_token_of_their_own_and_probes_none(tmp_path: Path) -> None:
    scrapers = tmp_path / "scrapers"
    scrapers.write_text("scrape-0123456789abc\nscrape-old-0123456789\n")
    pair = write_pair(tmp_path)
    settings: dict[str, Any] = {"admin_tls_cert_file": pair.certificate, "admin_tls_key_file": pair.key}
    async with (
        world(admin_port=0, admin_host="127.0.0.1", metrics_token_file=scrapers, **settings) as w,
        aiohttp.ClientSession(f"https://127.0.0.1:{w.gateway.admin_port}") as admin,
    ):
        tls = pair.client()
        for path in ("/livez", "/readyz"):
            # As the kubelet probes: it checks no certificate.
            async with admin.get(path, ssl=False) as response:
                assert response.status == 200
        for token, status in (
            (None, 401),
            ("wrong-0123456789abcd", 401),
            ("scrape-0123456789abc", 200),
            ("scrape-old-0123456789", 200),
        ):
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            async with admin.get("/metrics", headers=headers, ssl=tls) as response:
                assert response.status == status
                assert ("retinue_gateway_" in await response.text()) == (status == 200)


async def test_a_renewed_certificate_serves_new_connections_while_old_ones_go_on(tmp_path: Path) -> None:
    pair = write_pair(tmp_path)
    old = pair.client()
    async with world(tls_cert_file=pair.certificate, tls_key_file=pair.key) as w:
        url = f"https://127.0.0.1:{w.gateway.port}{CHAT}"
        async with aiohttp.ClientSession() as first, aiohttp.ClientSession() as second:
            engine = w.engines["coder-primary-decode-0"]
            engine.hold = asyncio.Event()
            async with first.post(url, json=chat(stream=True), ssl=old) as streaming:
                await streaming.content.readany()
                renewed = write_pair(tmp_path)
                w.gateway.credentials.refresh()
                with pytest.raises(aiohttp.ClientConnectorCertificateError):
                    await second.post(url, json=chat(), ssl=old)
                async with second.post(url, json=chat(), ssl=renewed.client()) as response:
                    assert response.status == 200
                engine.hold.set()
                assert (await streaming.content.read()).endswith(b"data: [DONE]\n\n")


def test_a_salt_divides_by_tenant_or_namespace_and_nobody_can_choose_anothers() -> None:
    one, two = (Caller(Tenant(name, None)) for name in ("one", "two"))
    friends = [Caller(Tenant(name, None, "friends")) for name in ("three", "four")]
    by_tenant = [cache_salt(CacheIsolation.TENANT, caller, "agents", None) for caller in (one, two, *friends)]
    assert len(set(by_tenant)) == 3
    assert by_tenant[2] == by_tenant[3]
    # What a client sends divides its own cache further, and never becomes another's salt.
    stolen = cache_salt(CacheIsolation.TENANT, two, "agents", by_tenant[0])
    assert stolen not in by_tenant
    assert cache_salt(CacheIsolation.TENANT, Caller(Tenant("friends", None)), "agents", None) != by_tenant[2]
    namespaces = {cache_salt(CacheIsolation.NAMESPACE, ANYBODY, name, None) for name in ("agents", "batch")}
    assert len(namespaces) == 2
    assert cache_salt(CacheIsolation.NAMESPACE, one, "agents", None) in namespaces
    assert cache_salt(CacheIsolation.NONE, one, "agents", None) is None
    assert cache_salt(CacheIsolation.TENANT, ANYBODY, "agents", "mine") == "mine"
    for wrong in ("", "x" * 1025, 5, ["a"]):
        with pytest.raises(GatewayError, match="cache_salt must be a text"):
            cache_salt(CacheIsolation.NONE, ANYBODY, "agents", wrong)


async def test_both_stages_get_the_salt_of_the_tenant_and_none_without_authentication(tmp_path: Path) -> None:
    async with world(prefill=1, decode=1, tokens_file=write_tokens(tmp_path)) as w:
        await w.post(headers=bearer("one"), cache_salt="mine")
        [prefill], [decode] = (engine.requests for engine in w.engines.values())
        assert prefill["cache_salt"] == decode["cache_salt"]
        assert prefill["cache_salt"] != "mine"
    async with world() as w:
        await w.post()
        assert "cache_salt" not in w.engines["coder-primary-decode-0"].requests[0]


@pytest.mark.parametrize(
    "fields",
    [
        {"kv_transfer_params": {"do_remote_prefill": True, "remote_host": "10.0.0.1", "remote_port": 1}},
        {"vllm_xargs": {"kv_transfer_params": "x"}},
        {"bootstrap_host": "10.0.0.1"},
        {"session_params": {"id": "another"}},
        {"request_id": "another"},
        {"disaggregated_params": {"request_type": "generation_only"}},
    ],
    ids=lambda fields: next(iter(fields)),
)
async def test_what_only_a_router_may_say_to_engines_is_refused(fields: dict[str, Any]) -> None:
    async with world() as w:
        status, body, _ = await w.post(**fields)
        assert (status, body["error"]["code"]) == (400, "invalid_value")
        assert "for the gateway to say to engines: leave it out" in body["error"]["message"]
        assert not w.engines["coder-primary-decode-0"].requests


ENGINE = (
    "--role=aggregated", "--model=gpt-oss-120b", "--served-model-name=coder", "--precision=MXFP4",
    "--context-window=131072", "--tensor=2", "--device=h200", "--cold-start-seconds=0", "--speed=50",
    "--host=127.0.0.1", "--port=0",
)  # fmt: skip


@asynccontextmanager
async def server_process(*arguments: str) -> AsyncIterator[int]:
    """A `retinue-emulator engine` or `tier` as a process of its own; its port."""
    program = [sys.executable, "-m", "retinue_emulator", *arguments]
    process = await asyncio.create_subprocess_exec(*program, stdout=asyncio.subprocess.PIPE, env={**os.environ})
    assert process.stdout is not None
    try:
        line = (await process.stdout.readline()).decode()
        assert line.startswith("listening on "), line
        yield int(line.rsplit(":", 1)[1])
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@asynccontextmanager
async def gateway_before(port: int, **settings: Any) -> AsyncIterator[aiohttp.ClientSession]:
    """A gateway with one AgentPool in each of two namespaces, both served by the engine on that port."""
    gateway = Gateway(GatewaySettings(host="127.0.0.1", port=0, **settings))
    role = RoleView("primary", "Primary", "coder", None, False, None, "coder")
    pools = [AgentPoolView(PoolKey(namespace, "coder"), 0, (role,)) for namespace in ("agents", "batch")]
    instances = [
        Instance(
            f"uid-{pool.key.namespace}", "coder-0", pool.key.namespace, "coder", Stage.DECODE, f"127.0.0.1:{port}", True
        )
        for pool in pools
    ]
    async with gateway.listening(), aiohttp.ClientSession(f"http://127.0.0.1:{gateway.port}") as client:
        gateway.table.publish(build_directory(instances, pools))
        gateway.table_changed()
        yield client


async def cached_tokens(
    client: aiohttp.ClientSession, tenant: str | None, namespace: str = "agents", **body: Any
) -> int:
    """Cached tokens of one request with the same prompt of 6400 tokens, unless the body says otherwise."""
    headers = bearer(tenant) if tenant else {}
    headers["x-session-id"] = "the same for all"
    prompt = {"retinue_prompt": {"scope": "s", "block_size": 64, "tokens": 6400, "runs": [[0, 100]]}}
    path = f"/{namespace}/coder/v1/chat/completions"
    async with client.post(path, json=chat(max_tokens=1, **(prompt | body)), headers=headers) as response:
        answer = await response.json()
        assert response.status == 200, answer
        cached: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        return cached


@pytest.mark.parametrize(
    "body", [{}, {"retinue_prompt": None, "messages": [{"role": "user", "content": "word " * 5120}]}]
)
async def test_one_tenants_prefix_is_never_anothers_hit_on_a_real_engine(tmp_path: Path, body: dict[str, Any]) -> None:
    async with server_process("engine", *ENGINE) as port:
        async with gateway_before(port, tokens_file=write_tokens(tmp_path)) as client:
            assert await cached_tokens(client, "one", **body) == 0
            assert await cached_tokens(client, "two", **body) == 0
            assert await cached_tokens(client, "one", **body) == 6400
            # A guessed salt does not help.
            salt = cache_salt(CacheIsolation.TENANT, Caller(Tenant("one", None)), "agents", None)
            assert await cached_tokens(client, "two", **body, cache_salt=salt) == 0
        groups = {"one": "friends", "two": "friends"}
        async with gateway_before(port, tokens_file=write_tokens(tmp_path, groups)) as client:
            assert await cached_tokens(client, "one", **body) == 0
            assert await cached_tokens(client, "two", **body) == 6400
            assert await cached_tokens(client, "ops", **body) == 0


async def test_namespaces_that_share_an_engine_share_no_prefix_unless_it_is_allowed() -> None:
    async with server_process("engine", *ENGINE) as port:
        async with gateway_before(port, cache_isolation="namespace") as client:
            assert [await cached_tokens(client, None, name) for name in ("agents", "batch", "agents")] == [0, 0, 6400]
        async with gateway_before(port, cache_isolation="none") as client:
            assert [await cached_tokens(client, None, name) for name in ("agents", "batch")] == [0, 6400]


async def test_a_tier_that_two_engines_share_keeps_tenants_apart(tmp_path: Path) -> None:
    async with server_process("tier", "--capacity-bytes=1000000000000", "--host=127.0.0.1", "--port=0") as store:
        # So few blocks that one prompt pushes out the one before, into the tier.
        engine = (*ENGINE, "--num-gpu-blocks-override=2100", f"--tier=shared=http://127.0.0.1:{store}")
        async with (
            server_process("engine", *engine) as port,
            gateway_before(port, tokens_file=write_tokens(tmp_path)) as client,
        ):
            other = {"retinue_prompt": {"scope": "other", "block_size": 64, "tokens": 128_000, "runs": [[0, 2000]]}}
            assert await cached_tokens(client, "one") == 0
            assert await cached_tokens(client, "one", **other) == 0
            async with aiohttp.ClientSession() as http:

                async def stored() -> bool:
                    async with http.get(f"http://127.0.0.1:{store}/metrics") as response:
                        lines = (await response.text()).splitlines()
                    return any(line.startswith("master_key_count ") and float(line.split()[1]) > 0 for line in lines)

                await eventually(stored, what="the tier holds blocks", timeout=20, interval=0.01)
            assert await cached_tokens(client, "two") == 0
            assert await cached_tokens(client, "one") == 6400
