"""No credential shows in any output: logs, statuses, Events, metrics, debug pages, decision records, answers.

Every secret of this test carries a mark. Operator and gateway run with all of them at the most talkative log level,
while Prometheus and clients do what makes a program complain.
"""

import asyncio
import base64
import json
import os
import secrets
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import web

from retinue_emulator.loopback import ClusterAccess, eventually
from retinue_emulator.loopback.ports import pick_ports

from ..certificates import Pair, write_pair
from .manifests import agent_pool
from .product import CLASSES, NODE_CLASS, REPOSITORY, SPEED

pytestmark = pytest.mark.component


@dataclass
class Secrets:
    """Marked secrets by name, and what was found where."""

    values: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)

    def make(self, name: str) -> str:
        self.values[name] = f"marked{secrets.token_hex(12)}"
        return self.values[name]

    def shown(self) -> list[str]:
        """Which secret shows in which output, in any of the forms in which it travels."""
        return [
            f"{name} in {where}"
            for where, text in self.outputs.items()
            for name, value in self.values.items()
            if any(form in text for form in (value, base64.b64encode(value.encode()).decode().rstrip("=")[:-2]))
        ]


class UnfriendlyPrometheus:
    """Answers each query in the next of several bad ways, and repeats in its errors what was sent to it."""

    def __init__(self) -> None:
        self.asked = 0
        self.seen: set[str] = set()

    async def answer(self, request: web.Request) -> web.Response:
        self.asked += 1
        sent = " ".join(f"{name}: {value}" for name, value in request.headers.items())
        self.seen.add(request.headers.get("Authorization", ""))
        kinds: list[Callable[[], web.Response]] = [
            lambda: web.json_response({"status": "success", "data": {"resultType": "vector", "result": []}}),
            lambda: web.json_response({"status": "error", "errorType": "bad_data", "error": sent}, status=400),
            lambda: web.Response(status=401, text=sent),
            lambda: web.Response(status=500, text=sent),
            lambda: web.Response(text=sent),
        ]
        return kinds[self.asked // 10 % len(kinds)]()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()


@asynccontextmanager
async def process(log: Path, module: str, *arguments: str, **environment: str) -> AsyncIterator[None]:
    """A program of ours with all of its output in one file, and an orderly end."""
    with log.open("wb") as output:
        running = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", module, *arguments),
            stdout=output,
            stderr=output,
            env={**os.environ, **environment},
        )
        try:
            yield
        finally:
            if running.returncode is None:
                running.terminate()
            await asyncio.wait_for(running.wait(), 30)


async def refused_start(module: str, *arguments: str, **environment: str) -> str:
    """What a program says that must not start."""
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, "run", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, **environment},
    )
    output, _ = await asyncio.wait_for(running.communicate(), 60)
    assert running.returncode != 0
    return output.decode()


def key_text(pair: Pair) -> str:
    """A line of a private key."""
    return pair.key.read_text().splitlines()[1]


def account_token(kubeconfig: Path) -> str:
    token: str = yaml.safe_load(kubeconfig.read_text())["users"][0]["user"]["token"]
    return token


def write_tenants(file: Path, token: str, namespace: str) -> None:
    file.write_text(json.dumps({"tenants": [{"name": "one", "namespaces": [namespace], "tokens": [token]}]}))


async def text_of(url: str, headers: dict[str, str] | None = None, **more: Any) -> str:
    async with (
        aiohttp.ClientSession() as http,
        http.request(more.pop("method", "GET"), url, headers=headers, **more) as a,
    ):
        return f"{a.status} {dict(a.headers)} {await a.text()}"


async def test_no_secret_shows_in_any_output(cluster: ClusterAccess, namespace: str, tmp_path: Path) -> None:
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(REPOSITORY / "deploy"))
    cluster.kubectl("delete", "lease/retinue-operator", "--namespace=retinue-system", "--ignore-not-found")
    for name, spec in CLASSES.items():
        cluster.kubectl("apply", "-f", "-", stdin=NODE_CLASS.format(name=name, spec=spec, speed=SPEED))
    marked = Secrets()
    files = {name: tmp_path / name for name in ("password", "tenants", "scrapers", "engine")}
    files["password"].write_text(marked.make("prometheus password"))
    write_tenants(files["tenants"], marked.make("tenant token"), namespace)
    files["scrapers"].write_text(marked.make("scrape token") + "\n")
    files["engine"].write_text(marked.make("engine token"))
    pair = write_pair(tmp_path)
    marked.values["TLS key"] = key_text(pair)
    header = marked.make("prometheus header")
    marked.values["basic authentication"] = base64.b64encode(
        f"me:{marked.values['prometheus password']}".encode()
    ).decode()
    kubeconfigs = {
        name: cluster.service_account_kubeconfig("retinue-system", f"retinue-{name}")
        for name in ("operator", "gateway")
    }
    for name, kubeconfig in kubeconfigs.items():
        marked.values[f"token of the {name}'s account"] = account_token(kubeconfig)
    probe_port, debug_port, api_port, admin_port = pick_ports(4)
    prometheus = UnfriendlyPrometheus()
    history = tmp_path / "decisions.jsonl"
    logs = {name: tmp_path / f"{name}.log" for name in ("operator", "gateway")}
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(prometheus.serving())
        await stack.enter_async_context(
            process(
                logs["operator"],
                "retinue_operator",
                *("run", f"--kubeconfig={kubeconfigs['operator']}", f"--namespaces={namespace}", "--log-level=debug"),
                *("--http-host=127.0.0.1", f"--http-port={probe_port}", f"--debug-port={debug_port}"),
                *(f"--http-tls-cert-file={pair.certificate}", f"--http-tls-key-file={pair.key}"),
                *(f"--metrics-token-file={files['scrapers']}", f"--history-file={history}"),
                *(f"--prometheus-url={url}", "--prometheus-username=me"),
                f"--prometheus-password-file={files['password']}",
                RETINUE_PROMETHEUS_HEADERS=json.dumps({"X-Secret": header}),
            )
        )
        await stack.enter_async_context(
            process(
                logs["gateway"],
                "retinue_gateway",
                *("run", f"--kubeconfig={kubeconfigs['gateway']}", f"--namespace={namespace}", "--log-level=debug"),
                *("--host=127.0.0.1", f"--port={api_port}", f"--admin-port={admin_port}", "--queue-timeout=1"),
                *(f"--tls-cert-file={pair.certificate}", f"--tls-key-file={pair.key}"),
                *(f"--admin-tls-cert-file={pair.certificate}", f"--admin-tls-key-file={pair.key}"),
                *(f"--tokens-file={files['tenants']}", f"--metrics-token-file={files['scrapers']}"),
                f"--engine-token-file={files['engine']}",
            )
        )
        tls = {"ssl": pair.client()}
        for port in (probe_port, admin_port):
            await eventually(lambda port=port: _ready(port), what=f"port {port} is ready", timeout=60)
        cluster.kubectl("apply", "-f", "-", stdin=json.dumps(agent_pool(namespace)))

        async def complained() -> bool:
            return prometheus.asked >= 60 and history.exists()

        await eventually(complained, what="Prometheus has answered in every bad way", timeout=60)
        assert any(seen.startswith("Basic ") for seen in prometheus.seen)
        # What clients and renewals do wrong.
        api = f"https://127.0.0.1:{api_port}/{namespace}/coder/v1"
        good = {"Authorization": f"Bearer {marked.values['tenant token']}"}
        wrong = {"Authorization": f"Bearer {marked.make('unknown token')}"}
        chat = {"model": "primary", "messages": [{"role": "user", "content": "x"}]}
        for name, headers, body in (
            ("a good request", good, chat),
            ("a wrong token", wrong, chat),
            ("a bad header", {**good, "x-session-id": "x" * 500}, chat),
            ("a bad body", good, {"model": 5}),
        ):
            posted = await text_of(f"{api}/chat/completions", headers, method="POST", json=body, **tls)
            marked.outputs[f"the answer to {name}"] = posted
        marked.outputs["the models"] = await text_of(f"{api}/models", good, **tls)
        files["tenants"].write_text(f"tenants: [{marked.values['tenant token']}\n: {marked.make('half a token')}")
        files["scrapers"].write_text(marked.values["scrape token"] + "\n" + marked.make("token with a blank") + " x\n")
        pair.key.write_text(pair.key.read_text().replace("-----END", f"{marked.make('broken key')}\n-----END"))

        async def noticed() -> bool:
            return all("credentials not renewed" in logs[name].read_text() for name in logs)

        await eventually(noticed, what="both say that the new files are of no use", timeout=30)
        scraper = {"Authorization": f"Bearer {marked.values['scrape token']}"}
        for name, port in (("operator", probe_port), ("gateway", admin_port)):
            metrics = await text_of(f"https://127.0.0.1:{port}/metrics", scraper, **tls)
            assert metrics.startswith("200")
            marked.outputs[f"the {name}'s metrics"] = metrics
        for page in ("queue", "cache", "cache/AgentPool/coder?namespace=" + namespace, "decisions"):
            marked.outputs[f"/debug/{page}"] = await text_of(f"http://127.0.0.1:{debug_port}/debug/{page}")
        kinds = "agentpools,prefillpools,decodepools,kvcachetiers,pods,services,events,leases"
        marked.outputs["the cluster's objects"] = cluster.kubectl("get", kinds, "-n", namespace, "-o", "yaml")
        marked.outputs["node classes"] = cluster.kubectl("get", "nodeclasses,events", "-o", "yaml")
        marked.outputs["the lease"] = cluster.kubectl("get", "leases,events", "-n", "retinue-system", "-o", "yaml")
    assert "MetricsFresh" in marked.outputs["the cluster's objects"]
    marked.outputs |= {f"the {name}'s log": file.read_text() for name, file in logs.items()}
    marked.outputs["the decision records"] = history.read_text()
    broken = f'{{"X-Secret": "{header}"'
    marked.outputs["a start with broken headers"] = await refused_start(
        "retinue_operator", RETINUE_PROMETHEUS_HEADERS=broken
    )
    marked.outputs["a start with a password in the address"] = await refused_start(
        "retinue_operator", f"--prometheus-url=http://me:{marked.make('password in an address')}@127.0.0.1:1"
    )
    marked.outputs["a start with broken tokens"] = await refused_start(
        "retinue_gateway", f"--tokens-file={files['tenants']}", f"--kubeconfig={kubeconfigs['gateway']}"
    )
    marked.outputs["a start with a broken key"] = await refused_start(
        "retinue_gateway",
        *(f"--tls-cert-file={pair.certificate}", f"--tls-key-file={pair.key}"),
        f"--kubeconfig={kubeconfigs['gateway']}",
    )
    cluster.kubectl("delete", "nodeclass", *CLASSES, "--ignore-not-found")
    assert all(marked.outputs.values())
    assert marked.shown() == []


async def _ready(port: int) -> bool:
    try:
        async with aiohttp.ClientSession() as http, http.get(f"https://127.0.0.1:{port}/readyz", ssl=False) as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False


def test_the_search_finds_a_secret_in_each_of_its_forms() -> None:
    marked = Secrets()
    value = marked.make("a secret")
    marked.outputs = {
        "plain": f"x {value} y",
        "in base64": base64.b64encode(value.encode()).decode(),
        "clean": "nothing",
    }
    assert marked.shown() == ["a secret in plain", "a secret in in base64"]
