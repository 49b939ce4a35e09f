"""The loopback control plane and its Prometheus are real, limited by RBAC, restartable, and leave nothing behind."""

import asyncio
import io
import json
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from retinue_emulator.loopback import (
    ClusterAccess,
    ControlPlane,
    KubectlError,
    LoopbackError,
    PrometheusServer,
    StaticTarget,
    ensure_tools,
    eventually,
)
from retinue_emulator.loopback.audit import WRITE_VERBS
from retinue_emulator.loopback.components import API_SERVER, COMPONENTS
from retinue_emulator.loopback.ports import pick_ports
from retinue_emulator.loopback.process import ChildProcess
from retinue_emulator.loopback.progress import PlainReporter
from retinue_emulator.loopback.prometheus_config import render_config

pytestmark = pytest.mark.component


@pytest.fixture
async def own_cluster() -> AsyncIterator[ControlPlane]:
    """A control plane of this test alone, for tests that break it."""
    async with ControlPlane() as control_plane:
        yield control_plane


def alive(pid: int) -> bool:
    """Whether the process exists and is not merely waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def pod(namespace: str, name: str, **labels: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": namespace,
            "name": name,
            "labels": {"app.kubernetes.io/managed-by": "retinue"}
            | {f"retinue.dev/{key.replace('_', '-')}": value for key, value in labels.items()},
        },
        "spec": {
            "containers": [{"name": "engine", "image": "none", "ports": [{"name": "http", "containerPort": 18080}]}]
        },
    }


def set_running(cluster: ClusterAccess, namespace: str, name: str, ip: str) -> None:
    status = {"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}}
    cluster.kubectl(
        "patch", "pod", name, "-n", namespace, "--subresource=status", "--type=merge", "-p", json.dumps(status)
    )


async def test_a_deployment_gets_its_pods_from_the_real_controllers(cluster: ClusterAccess, namespace: str) -> None:
    labels = {"app": "web"}
    cluster.apply(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"namespace": namespace, "name": "web"},
            "spec": {
                "replicas": 2,
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {"containers": [{"name": "web", "image": "none"}]},
                },
            },
        }
    )

    async def pods() -> bool:
        return len(cluster.get("pods", "-n", namespace)["items"]) == 2

    await eventually(pods, what="two pods of the Deployment")


async def test_a_service_account_may_do_what_its_role_says_and_no_more(cluster: ClusterAccess, namespace: str) -> None:
    subject = {"kind": "ServiceAccount", "name": "reader", "namespace": namespace}
    cluster.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "reader", "namespace": namespace}},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": {"name": "reader", "namespace": namespace},
            "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list"]}],
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "reader", "namespace": namespace},
            "subjects": [subject],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
        },
    )
    reader = cluster.as_service_account(namespace, "reader")
    assert reader.get("configmaps", "-n", namespace)["kind"] == "List"
    with pytest.raises(KubectlError, match=rf"system:serviceaccount:{namespace}:reader.*cannot list resource"):
        reader.get("secrets", "-n", namespace)
    assert reader.kubeconfig.stat().st_mode & 0o077 == 0


async def test_writes_are_in_the_audit_log_with_their_author() -> None:
    async with ControlPlane(audit=True) as audited:
        audited.kubectl("create", "configmap", "seen")
        audited.kubectl("get", "configmap", "seen")

        async def recorded() -> list[str]:
            return [event.verb for event in audited.audit_events() if event.name == "seen"]

        assert await eventually(recorded, what="the write of the ConfigMap in the audit log") == ["create"]
        created = next(event for event in audited.audit_events() if event.name == "seen")
        assert (created.user, created.resource, created.namespace, created.code) == (
            "retinue:admin",
            "configmaps",
            "default",
            201,
        )
        assert created.field_manager == "kubectl-create"


async def test_reads_of_chosen_accounts_are_in_the_audit_log_a_running_watch_too_and_each_once() -> None:
    async with ControlPlane(audit=True, audit_reads=("watched",)) as audited:
        user, other = (f"system:serviceaccount:{namespace}:reader" for namespace in ("watched", "other"))
        for namespace in ("watched", "other"):
            audited.kubectl("create", "namespace", namespace)
            audited.kubectl("create", "serviceaccount", "reader", "-n", namespace)
        audited.kubectl("create", "clusterrole", "reader", "--verb=get,list,watch", "--resource=configmaps")
        audited.kubectl("create", "clusterrolebinding", "reader", "--clusterrole=reader", f"--user={user}")
        audited.kubectl("create", "clusterrolebinding", "other", "--clusterrole=reader", f"--user={other}")

        async def allowed() -> bool:
            asked = ("auth", "can-i", "watch", "configmaps", "-n", "watched")
            return all(audited.kubectl(*asked, f"--as={name}") for name in (user, other))

        await eventually(allowed, what="the rights of the readers")
        reader = audited.as_service_account("watched", "reader")

        def recorded() -> list[tuple[str, str, int]]:
            events = audited.audit_events(reads=True)
            return [(e.verb, e.resource, e.code) for e in events if e.user == user and e.resource]

        watch = await asyncio.create_subprocess_exec(
            *(reader.kubectl_path, f"--kubeconfig={reader.kubeconfig}", f"--cache-dir={reader.scratch}"),
            *("get", "configmaps", "-n", "watched", "--watch-only"),
            stdout=asyncio.subprocess.DEVNULL,
        )
        try:

            async def watching() -> bool:
                return ("watch", "configmaps", 200) in recorded()

            await eventually(watching, what="a watch in the audit log while it runs")
            assert watch.returncode is None
        finally:
            watch.terminate()
            await watch.wait()
        with pytest.raises(KubectlError, match="cannot list"):
            reader.kubectl("get", "secrets", "-n", "watched")
        audited.as_service_account("other", "reader").kubectl("get", "configmaps", "-n", "watched")
        audited.kubectl("get", "configmaps", "-n", "watched", f"--as={user}")
        with pytest.raises(KubectlError, match="cannot create"):
            audited.kubectl("create", "configmap", "x", "-n", "watched", f"--as={user}")

        def seen(verb: str) -> list[tuple[str, str, int]]:
            return [found for found in recorded() if found[0] == verb]

        assert seen("watch") == [("watch", "configmaps", 200)]
        assert [found for found in seen("list") if found[1] == "secrets"] == [("list", "secrets", 403)]
        assert seen("create") == []
        (refused,) = (event for event in audited.audit_events() if event.code == 403 and event.impersonated)
        assert (refused.user, refused.impersonated, refused.decision) == ("retinue:admin", user, "forbid")
        assert {event.verb for event in audited.audit_events()} <= set(WRITE_VERBS)
        readers = {event.user for event in audited.audit_events(reads=True) if event.verb in ("get", "list", "watch")}
        assert readers == {user}


async def test_an_api_server_killed_and_started_again_has_its_objects(own_cluster: ControlPlane) -> None:
    own_cluster.kubectl("create", "configmap", "kept", "--from-literal=key=value")
    before = own_cluster.pids()
    own_cluster.kill(API_SERVER)
    await own_cluster.start_component(API_SERVER)
    await own_cluster.wait_ready()
    assert own_cluster.get("configmap", "kept")["data"] == {"key": "value"}
    assert own_cluster.pids()[API_SERVER] != before[API_SERVER]
    assert own_cluster.pids()["etcd"] == before["etcd"]


async def test_a_clean_stop_leaves_neither_processes_nor_files(own_cluster: ControlPlane) -> None:
    pids = own_cluster.pids()
    assert tuple(pids) == COMPONENTS
    await own_cluster.stop()
    assert [name for name, pid in pids.items() if alive(pid)] == []
    assert not own_cluster.state.exists()


async def test_a_failure_inside_keeps_the_logs_only() -> None:
    control_plane = ControlPlane()

    async def fail_inside() -> None:
        async with control_plane:
            raise RuntimeError("the test failed")

    with pytest.raises(RuntimeError, match="the test failed"):
        await fail_inside()
    kept = control_plane.state
    try:
        assert [path.name for path in kept.iterdir()] == ["logs"]
        assert (control_plane.logs / "kube-apiserver.log").stat().st_size > 0
    finally:
        for log in control_plane.logs.iterdir():
            log.unlink()
        control_plane.logs.rmdir()
        kept.rmdir()


async def test_a_given_state_folder_is_continued_with_its_objects_and_tokens(tmp_path: Path) -> None:
    async with ControlPlane(state=tmp_path / "state") as first:
        first.kubectl("create", "configmap", "kept")
        token = first.admin_token
        with pytest.raises(LoopbackError, match="in use by another control plane"):
            await ControlPlane(state=tmp_path / "state").start()
    async with ControlPlane(state=tmp_path / "state") as second:
        assert second.admin_token == token
        assert second.get("configmap", "kept")["metadata"]["name"] == "kept"


async def test_arguments_of_a_component_can_be_overridden_and_a_bad_one_is_explained() -> None:
    with pytest.raises(ValueError, match="extra_args names kubelet"):
        ControlPlane(extra_args={"kubelet": []})
    broken = ControlPlane(extra_args={"kube-apiserver": ["--no-such-flag"]}, keep=False)
    try:
        with pytest.raises(LoopbackError, match=r"kube-apiserver ended with status \d+: see .*unknown flag"):
            await broken.start()
        assert broken.pids() == {}
    finally:
        for log in broken.logs.iterdir():
            log.unlink()
        broken.logs.rmdir()
        broken.state.rmdir()


@pytest.mark.parametrize(
    ("sig", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130), (signal.SIGTERM, 0)]
)
async def test_no_component_outlives_its_parent(sig: signal.Signals, status: int, tmp_path: Path) -> None:
    await ensure_tools()
    command = ["-m", "retinue_emulator.loopback", "up", "--state", str(tmp_path / "state")]
    parent = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        assert parent.stdout is not None
        line = await parent.stdout.readline()
        assert line.decode().strip() == f"export KUBECONFIG={tmp_path / 'state' / 'kubeconfig'}"
        children = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if parent_of(pid) == parent.pid]
        assert len(children) == len(COMPONENTS)
        parent.send_signal(sig)

        async def gone() -> bool:
            return not [pid for pid in children if alive(pid)]

        await eventually(gone, what=f"the end of all components after {sig.name}", timeout=30)
        assert await parent.wait() == status
    finally:
        if parent.returncode is None:
            parent.kill()
            await parent.wait()


def parent_of(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None


async def test_a_child_is_refused_outside_the_main_thread(tmp_path: Path) -> None:
    errors: list[LoopbackError] = []

    def spawn() -> None:
        try:
            ChildProcess.spawn("sleep", ["sleep", "60"], log=tmp_path / "log")
        except LoopbackError as error:
            errors.append(error)

    thread = threading.Thread(target=spawn)
    thread.start()
    thread.join()
    assert "start it from the main thread" in str(errors[0])


async def test_a_child_that_ignores_sigterm_is_killed_after_its_grace(tmp_path: Path) -> None:
    stubborn = "import signal as s, time; s.signal(s.SIGTERM, s.SIG_IGN); print('up', flush=True); time.sleep(60)"
    child = ChildProcess.spawn("stubborn", [sys.executable, "-c", stubborn], log=tmp_path / "log")

    async def up() -> bool:
        return child.log_tail() == "up"

    await eventually(up, what="the child's first line")
    began = time.monotonic()
    assert await child.stop(grace=0.3) == -signal.SIGKILL
    assert time.monotonic() - began >= 0.3


async def test_prometheus_scrapes_a_running_pod_on_its_own_loopback_address(
    cluster: ClusterAccess, namespace: str, prometheus: PrometheusServer
) -> None:
    async with serving_metrics('vllm:num_requests_running{pool="liar"} 3\n', "127.9.8.7", 18080):
        labels = {
            "agent_pool": "coder",
            "role": "primary",
            "pool": "coder-primary",
            "pool_kind": "DecodePool",
            "instance": "coder-primary-0",
            "node_class": "gb300",
        }
        cluster.apply(pod(namespace, "engine-0", **labels), pod(namespace, "engine-pending", **labels))
        set_running(cluster, namespace, "engine-0", "127.9.8.7")

        async def scraped() -> Any:
            return await prometheus.query(f'vllm:num_requests_running{{namespace="{namespace}"}}')

        (sample,) = await eventually(scraped, what="the pod's metric in Prometheus")
        assert sample.value == 3.0
        expected = {
            "agent_pool": "coder",
            "role": "primary",
            "pool": "coder-primary",
            "exported_pool": "liar",
            "pool_kind": "DecodePool",
            "retinue_instance": "coder-primary-0",
            "node_class": "gb300",
            "pod": "engine-0",
            "instance": "127.9.8.7:18080",
            "job": "retinue-pods",
        }
        assert {key: sample.labels.get(key) for key in expected} == expected
        targets = [target["labels"] for target in await prometheus.active_targets()]
        assert [labels["pod"] for labels in targets if labels["namespace"] == namespace] == ["engine-0"]


async def test_prometheus_killed_and_started_again_has_its_port_and_its_data() -> None:
    (port,) = pick_ports(1)
    async with (
        serving_metrics("answer 42\n", "127.0.0.1", port),
        PrometheusServer(targets=[StaticTarget("oracle", f"127.0.0.1:{port}")]) as prometheus,
    ):

        async def scrapes() -> float:
            return sum(sample.value for sample in await prometheus.query('count_over_time(answer{job="oracle"}[1h])'))

        before = await eventually(scrapes, what="a first scrape")
        url = prometheus.url
        prometheus.kill()

        async def ended() -> bool:
            return not prometheus.running

        await eventually(ended, what="the end of Prometheus")
        with pytest.raises(LoopbackError, match="does not answer"):
            await prometheus.query("answer")
        await prometheus.start()
        assert prometheus.url == url
        assert await scrapes() >= before


async def test_a_query_that_prometheus_refuses_is_explained(prometheus: PrometheusServer) -> None:
    with pytest.raises(LoopbackError, match=r"refused .*parse error"):
        await prometheus.query("up{")
    (one,) = await prometheus.query("1/0")
    assert one.value == float("inf")
    assert await prometheus.query("no_such_metric") == []


async def test_promtool_accepts_the_generated_configuration(tmp_path: Path) -> None:
    promtool = (await ensure_tools(("promtool",)))["promtool"]
    config = tmp_path / "prometheus.yml"
    targets = [StaticTarget("gateway", "127.0.0.1:9000"), StaticTarget("operator", "127.0.0.1:9001")]
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text("{}")
    config.write_text(render_config(kubeconfig=kubeconfig, targets=targets, scrape_interval="500ms"))
    check = await asyncio.create_subprocess_exec(
        promtool, "check", "config", str(config), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await check.communicate()
    assert check.returncode == 0, output.decode()


async def test_without_go_and_without_a_package_index_there_is_one_clear_line(tmp_path: Path) -> None:
    environ = {"PATH": "", "HOME": str(tmp_path), "PIP_NO_INDEX": "1"}
    with pytest.raises(LoopbackError, match=r"^there is no Go >= 1\.26 in PATH and pip cannot .*: install Go 1\.26"):
        await ensure_tools(("etcd",), environ=environ, reporter=PlainReporter(io.StringIO()))


@asynccontextmanager
async def serving_metrics(text: str, host: str, port: int) -> AsyncIterator[None]:
    """An HTTP server whose /metrics is always `text`."""

    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(text=text, content_type="text/plain")

    application = web.Application()
    application.router.add_get("/metrics", metrics)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        yield
    finally:
        await runner.cleanup()
