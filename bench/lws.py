"""LeaderWorkerSet from its Go module: built once into a cache, run as its release runs it on the loopback cluster."""

import asyncio
import base64
import json
import os
import platform
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml

from bench.apiserver import many
from bench.ground import Ground
from retinue_emulator.loopback.build import build, write_module
from retinue_emulator.loopback.health import wait_healthy
from retinue_emulator.loopback.locate import cache_root
from retinue_emulator.loopback.ports import HOST, pick_ports
from retinue_emulator.loopback.process import ChildProcess
from retinue_emulator.loopback.progress import standard_reporter
from retinue_emulator.loopback.toolchain import find_go
from retinue_emulator.loopback.toolset import GoModule, Tool, cache_key
from retinue_emulator.stages import Stages

VERSION = "0.9.0"
_PACKAGE = "sigs.k8s.io/lws"
_MODULE = Path(__file__).parent / "modules" / "lws"
_TOOL = Tool("lws", GoModule("lws", VERSION, "-s -w"), f"{_PACKAGE}/cmd")
_GROUP = "/apis/leaderworkerset.x-k8s.io/v1"
# Only pods of LeaderWorkerSets pass its webhooks, as its release configures them.
_ITS_PODS = {"matchExpressions": [{"key": "leaderworkerset.sigs.k8s.io/name", "operator": "Exists"}]}


async def ensure(stages: Stages) -> tuple[Path, Path]:
    """The manager's binary and the folder of its sources; builds it when this version is not in the cache (minutes)."""
    files = {path.name: path.read_bytes() for path in _MODULE.iterdir()}
    key = cache_key([_TOOL], {_TOOL.module.name: files}, platform.machine())
    cache = cache_root(os.environ).parent / "bench" / f"lws-{VERSION}-{key}"
    binary = cache / "lws"
    with standard_reporter() as reporter:
        go = await find_go(os.environ, cache_root(os.environ), reporter)
    module = write_module(files, cache / "module")
    if not binary.is_file():
        with stages.stage(f"building LeaderWorkerSet v{VERSION} (once, minutes)") as stage:
            await build(_TOOL, go, module=module, binary=binary, logs=cache, update=stage.update)
    listed = await asyncio.create_subprocess_exec(
        *(str(go.path), "list", "-mod=readonly", "-m", "-f", "{{.Dir}}", _PACKAGE),
        cwd=module,
        env=dict(go.environ),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await listed.communicate()
    if listed.returncode != 0:
        raise RuntimeError(f"the sources of {_PACKAGE} are not in Go's module cache: run go mod download in {module}")
    return binary, Path(output.decode().strip())


class LeaderWorkerSets:
    """A running manager of LeaderWorkerSets."""

    def __init__(self, ground: Ground, child: ChildProcess) -> None:
        self._ground = ground
        self.child = child

    @classmethod
    @asynccontextmanager
    async def running(cls, ground: Ground) -> AsyncIterator["LeaderWorkerSets"]:
        """Installs its kinds and webhooks and runs the manager with its default limits until the end of the block."""
        binary, sources = await ensure(ground.stages)
        cluster = ground.cluster
        crds = str(sources / "config" / "crd" / "bases")
        await asyncio.to_thread(cluster.kubectl, "apply", "--server-side", "-f", crds)
        await asyncio.to_thread(cluster.kubectl, "wait", "--for=condition=Established", "--timeout=60s", "-f", crds)
        folder = cluster.state / "lws"
        certificates = folder / "certificates"
        certificates.mkdir(parents=True)
        # The API server's own certificate is for 127.0.0.1 and good for the webhooks, too.
        shutil.copy(cluster.layout.credentials / "serving.crt", certificates / "tls.crt")
        shutil.copy(cluster.layout.credentials / "serving.key", certificates / "tls.key")
        webhook, health, metrics = pick_ports(3)
        configuration = folder / "configuration.yaml"
        configuration.write_text(yaml.safe_dump(_configuration(certificates, webhook, health, metrics)))
        argv = [str(binary), f"--config={configuration}", f"--kubeconfig={cluster.kubeconfig}", "--zap-log-level=error"]
        child = ChildProcess.spawn("lws", argv, log=cluster.logs / "lws.log")
        try:
            await wait_healthy(child, f"http://{HOST}:{health}/readyz", timeout=60)
            for hooks in yaml.safe_load_all((sources / "config" / "webhook" / "manifests.yaml").read_text()):
                rewritten = json.dumps(_local(hooks, webhook, cluster.ca_certificate))
                await asyncio.to_thread(cluster.kubectl, "apply", "-f", "-", stdin=rewritten)
            await _listening(webhook)
            yield cls(ground, child)
        finally:
            await child.stop(10)

    async def create(self, namespace: str, count: int, groups: int, size: int) -> None:
        """Creates so many sets of `groups` groups of `size` pods, as a user would, many at a time."""
        path = f"{_GROUP}/namespaces/{namespace}/leaderworkersets"
        sets = [_set(f"set-{number:04d}", groups, size) for number in range(count)]
        await many([lambda s=s: self._ground.api.send("POST", path, s) for s in sets])  # type: ignore[misc]


def _configuration(certificates: Path, webhook: int, health: int, metrics: int) -> dict[str, Any]:
    return {
        "apiVersion": "config.lws.x-k8s.io/v1alpha1",
        "kind": "Configuration",
        "leaderElection": {"leaderElect": False},
        "internalCertManagement": {"enable": False},
        "webhook": {"port": webhook, "host": HOST, "certDir": str(certificates)},
        "health": {"healthProbeBindAddress": f"{HOST}:{health}"},
        "metrics": {"bindAddress": f"{HOST}:{metrics}"},
    }


def _local(hooks: Mapping[str, Any], port: int, ca: bytes) -> dict[str, Any]:
    """The webhook configuration with the manager's address in place of a Service."""
    rewritten = []
    for hook in hooks["webhooks"]:
        path = hook["clientConfig"]["service"]["path"]
        client = {"url": f"https://{HOST}:{port}{path}", "caBundle": base64.b64encode(ca).decode()}
        selector = {"objectSelector": _ITS_PODS} if path.endswith("-v1-pod") else {}
        rewritten.append({**hook, "clientConfig": client, **selector})
    return {**hooks, "metadata": {"name": f"lws-{hooks['metadata']['name']}"}, "webhooks": rewritten}


async def _listening(port: int) -> None:
    while True:
        try:
            _, writer = await asyncio.open_connection(HOST, port)
        except OSError:
            await asyncio.sleep(0.1)
        else:
            writer.close()
            return


def _set(name: str, groups: int, size: int) -> dict[str, Any]:
    container = {"name": "engine", "image": "engine", "resources": {"limits": {"nvidia.com/gpu": "1"}}}
    return {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": {"name": name},
        "spec": {
            "replicas": groups,
            "leaderWorkerTemplate": {"size": size, "workerTemplate": {"spec": {"containers": [container]}}},
        },
    }
