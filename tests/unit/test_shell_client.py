"""The client against a scripted HTTP server: credentials read again, lists in pages, every failure a KubeError."""

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer

from retinue_operator.access import Access, AccessError
from retinue_operator.client import KubeClient
from retinue_operator.errors import ApiDown, Gone, NotFound, Throttled, Unauthorized

Answer = Callable[[web.Request], web.Response]


class Script:
    """An HTTP server whose answers a test chooses, and the requests that it saw."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        self.requests: list[tuple[str, str, str]] = []
        self.bodies: list[Any] = []
        self.answer: Answer = lambda _: web.json_response({})
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", self._handle)
        self.server = TestServer(app)

    async def _handle(self, request: web.Request) -> web.Response:
        self.requests.append((request.method, request.path_qs, request.headers.get("Authorization", "")))
        text = await request.text()
        self.bodies.append(json.loads(text) if text else None)
        return self.answer(request)

    def write_token(self, token: str) -> None:
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": str(self.server.make_url("/")).rstrip("/")}}],
            "users": [{"name": "u", "user": {"token": token}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        self.kubeconfig.write_text(yaml.safe_dump(config))


@pytest.fixture
async def script(tmp_path: Path) -> AsyncIterator[Script]:
    scripted = Script(tmp_path / "config")
    await scripted.server.start_server()
    scripted.write_token("first")
    yield scripted
    await scripted.server.close()


@pytest.fixture
async def client(script: Script) -> AsyncIterator[KubeClient]:
    async with await KubeClient.connect(Access(script.kubeconfig)) as connected:
        yield connected


async def test_a_refused_token_is_read_again_and_the_request_repeated(script: Script, client: KubeClient) -> None:
    def answer(request: web.Request) -> web.Response:
        return web.json_response({}, status=200 if request.headers["Authorization"] == "Bearer second" else 401)

    script.answer = answer
    script.write_token("second")
    await client.get("Pod", "ns", "a")
    assert [token for _, _, token in script.requests] == ["Bearer first", "Bearer second"]
    await client.get("Pod", "ns", "b")
    assert script.requests[-1][2] == "Bearer second"


async def test_a_token_that_stays_refused_is_an_error_after_one_repeat(script: Script, client: KubeClient) -> None:
    script.answer = lambda _: web.json_response({"message": "Unauthorized"}, status=401)
    with pytest.raises(Unauthorized):
        await client.get("Pod", "ns", "a")
    assert len(script.requests) == 2


def page(names: list[str], token: str = "") -> web.Response:
    items = [{"metadata": {"name": name, "namespace": "ns"}} for name in names]
    return web.json_response({"metadata": {"resourceVersion": "7", "continue": token}, "items": items})


async def test_a_list_is_read_page_by_page_with_the_selector_of_its_kind(script: Script, client: KubeClient) -> None:
    script.answer = lambda request: page(["c"]) if "continue" in request.query else page(["a", "b"], "next")
    listing = await client.list("Pod", "ns")
    assert [item["metadata"]["name"] for item in listing.items] == ["a", "b", "c"]
    assert {(item["apiVersion"], item["kind"]) for item in listing.items} == {("v1", "Pod")}
    assert listing.resource_version == 7
    for _, path, _ in script.requests:
        assert path.startswith("/api/v1/namespaces/ns/pods?")
        assert "labelSelector=app.kubernetes.io/managed-by%3Dretinue" in path


async def test_a_list_whose_pages_expired_is_read_again_in_one_piece(script: Script, client: KubeClient) -> None:
    def answer(request: web.Request) -> web.Response:
        if "continue" in request.query:
            return web.json_response({"message": "too old"}, status=410)
        return page(["a"], "next") if "limit" in request.query else page(["a", "b"])

    script.answer = answer
    assert len((await client.list("Node")).items) == 2


async def test_a_list_of_a_kind_that_is_not_served_is_an_error(script: Script, client: KubeClient) -> None:
    script.answer = lambda _: web.json_response({"message": "no such kind"}, status=404)
    with pytest.raises(NotFound):
        await client.list("AgentPool")


async def test_an_apply_names_its_manager_and_says_whether_it_forces(script: Script, client: KubeClient) -> None:
    manifest = {"apiVersion": "retinue.dev/v1alpha1", "kind": "NodeClass", "metadata": {"name": "h100"}}
    await client.apply(manifest, "retinue", force=False)
    await client.apply_status({**manifest, "status": {"nodes": 1}})
    assert [path for _, path, _ in script.requests] == [
        "/apis/retinue.dev/v1alpha1/nodeclasses/h100?fieldManager=retinue&force=false",
        "/apis/retinue.dev/v1alpha1/nodeclasses/h100/status?fieldManager=retinue-status&force=true",
    ]
    assert script.bodies[0] == manifest


async def test_a_delete_carries_uid_and_grace(script: Script, client: KubeClient) -> None:
    await client.delete("Pod", "ns", "a", uid="u", grace_seconds=0)
    assert script.bodies[0]["preconditions"] == {"uid": "u"}
    assert script.bodies[0]["gracePeriodSeconds"] == 0


async def test_throttling_gone_and_text_answers_are_errors_of_their_class(script: Script, client: KubeClient) -> None:
    script.answer = lambda _: web.json_response({}, status=429, headers={"Retry-After": "4"})
    with pytest.raises(Throttled) as throttled:
        await client.get("Pod", "ns", "a")
    assert throttled.value.retry_after == 4
    script.answer = lambda _: web.json_response({"message": "expired"}, status=410)
    with pytest.raises(Gone):
        await client.get("Pod", "ns", "a")
    script.answer = lambda _: web.Response(text="upstream is not there", status=502)
    with pytest.raises(ApiDown, match="upstream is not there"):
        await client.get("Pod", "ns", "a")


async def test_a_server_that_is_gone_is_down_and_counted(script: Script) -> None:
    seen: list[tuple[str, str, int]] = []
    connected = await KubeClient.connect(
        Access(script.kubeconfig), lambda verb, kind, code, _: seen.append((verb, kind, code))
    )
    async with connected as client:
        await client.get("Pod", "ns", "a")
        await script.server.close()
        with pytest.raises(ApiDown, match="does not answer"):
            await client.get("Pod", "ns", "a")
    assert seen == [("GET", "Pod", 200), ("GET", "Pod", 0)]


@pytest.mark.parametrize("content", ["", "not: [yaml", "apiVersion: v1\nkind: Config\n"])
async def test_a_broken_kubeconfig_is_one_line_that_names_the_file(tmp_path: Path, content: str) -> None:
    broken = tmp_path / "config"
    broken.write_text(content)
    with pytest.raises(AccessError) as refused:
        await Access(broken).load()
    assert str(broken) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("excepted", [False, True])
async def test_the_environments_proxy_is_asked_unless_the_server_is_excepted(
    script: Script, monkeypatch: pytest.MonkeyPatch, excepted: bool
) -> None:
    asked: list[str] = []

    async def forward(request: web.Request) -> web.Response:
        asked.append(request.raw_path)
        return web.json_response({"by": "proxy"})

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", forward)
    for name in ("no_proxy", "NO_PROXY", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    async with TestServer(app) as proxy:
        monkeypatch.setenv("http_proxy", str(proxy.make_url("/")))
        monkeypatch.setenv("no_proxy", "127.0.0.1" if excepted else "example.org")
        async with await KubeClient.connect(Access(script.kubeconfig)) as client:
            answer = await client.get("Pod", "ns", "a")
    assert (answer == {"by": "proxy"}) is not excepted
    assert [path.startswith("http://127.0.0.1:") for path in asked] == ([] if excepted else [True])
    assert len(script.requests) == (1 if excepted else 0)
