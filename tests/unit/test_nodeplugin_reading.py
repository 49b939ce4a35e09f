"""What the node plugin reads: fault annotations, pod specs, service names, and the API server's lists and watches."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue_emulator.nodeplugin.apiserver import ApiError, ApiServer
from retinue_emulator.nodeplugin.clusternames import ClusterNames
from retinue_emulator.nodeplugin.faults import (
    FaultError,
    NodeFaults,
    PodFaults,
    parse_node_faults,
    parse_pod_faults,
)
from retinue_emulator.nodeplugin.podspec import UnsupportedEnv, command_line, grace_seconds, requested_devices
from retinue_emulator.nodeplugin.reflector import Reflector

POD: dict[str, Any] = {
    "metadata": {"name": "p", "namespace": "ns", "uid": "u", "labels": {"a": "b"}},
    "spec": {"serviceAccountName": "sa"},
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", NodeFaults()),
        ("down", NodeFaults(down=True)),
        ("silent", NodeFaults(silent=True)),
        ("device-unhealthy=3", NodeFaults(unhealthy=frozenset({3}))),
        ("device-unhealthy=0+2, device-unhealthy=5", NodeFaults(unhealthy=frozenset({0, 2, 5}))),
    ],
)
def test_node_faults_are_read(text: str, expected: NodeFaults) -> None:
    assert parse_node_faults(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", PodFaults()),
        ("crash", PodFaults(crash=True)),
        ("slow-start=1m30s,metrics-gone", PodFaults(slow_start_seconds=90, metrics_gone=True)),
        ("crash-loop, hang, image-pull", PodFaults(crash_loop=True, hang=True, image_pull=True)),
    ],
)
def test_pod_faults_are_read(text: str, expected: PodFaults) -> None:
    assert parse_pod_faults(text) == expected


@pytest.mark.parametrize("text", ["crash", "down=1", "device-unhealthy=x", "device-unhealthy="])
def test_an_unknown_node_fault_lists_the_known_ones(text: str) -> None:
    with pytest.raises(FaultError, match="use down, silent, device-unhealthy"):
        parse_node_faults(text)


@pytest.mark.parametrize("text", ["down", "crash=1", "slow-start=soon"])
def test_an_unknown_pod_fault_is_refused(text: str) -> None:
    with pytest.raises(FaultError, match=r"is not a (pod fault|duration)"):
        parse_pod_faults(text)


def read(container: dict[str, Any]) -> tuple[tuple[str, ...], dict[str, str]]:
    command = command_line(
        POD, {"name": "c", **container}, node="n1", host_ip="127.0.0.9", pod_ip="127.1.0.1", extra={"DEVICES": "GPU-0"}
    )
    return command.argv, dict(command.env)


def test_fields_of_the_pod_reach_the_environment() -> None:
    paths = {
        "NAME": "metadata.name",
        "NODE": "spec.nodeName",
        "POD_IP": "status.podIP",
        "HOST": "status.hostIP",
        "A": "metadata.labels['a']",
        "GONE": "metadata.annotations['x']",
    }
    env = [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in paths.items()]
    assert read({"env": env})[1] == {
        "NAME": "p",
        "NODE": "n1",
        "POD_IP": "127.1.0.1",
        "HOST": "127.0.0.9",
        "A": "b",
        "GONE": "",
        "DEVICES": "GPU-0",
    }


def test_references_in_arguments_and_variables_are_replaced() -> None:
    env = [{"name": "A", "value": "1"}, {"name": "B", "value": "$(A)2"}]
    argv, _ = read({"command": ["run"], "args": ["--b=$(B)", "$(NOPE)", "$$(A)"], "env": env})
    assert argv == ("run", "--b=12", "$(NOPE)", "$(A)")


def test_limits_reach_the_environment() -> None:
    env = [{"name": "MEM", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory"}}}]
    assert read({"env": env, "resources": {"limits": {"memory": "1Ki"}}})[1]["MEM"] == "1024"


def test_secrets_are_not_read_unless_optional() -> None:
    secret = {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}
    with pytest.raises(UnsupportedEnv, match="S of container c comes from secretKeyRef"):
        read({"env": [secret]})
    optional = {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k", "optional": True}}}
    assert read({"env": [optional]})[1]["S"] == ""


def test_only_extended_resources_count_as_devices() -> None:
    limits = {"cpu": "2", "memory": "1Gi", "nvidia.com/gpu": "4"}
    assert requested_devices({"resources": {"limits": limits}}) == {"nvidia.com/gpu": 4}


def test_the_grace_of_a_deletion_wins_over_that_of_the_spec() -> None:
    spec = {"terminationGracePeriodSeconds": 600}
    assert grace_seconds({"metadata": {}, "spec": spec}) == 600
    assert grace_seconds({"metadata": {"deletionGracePeriodSeconds": 0}, "spec": spec}) == 0


def server(name: str, address: str, *, ready: bool = True, namespace: str = "ns") -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"hostname": name, "subdomain": "warm-tier"},
        "status": {"podIP": address, "conditions": [{"type": "Ready", "status": str(ready)}]},
    }


NAMES = ClusterNames(
    lambda: [
        server("warm-tier-1-0", "127.64.16.2"),
        server("warm-tier-0-0", "127.64.16.1"),
        server("warm-tier-2-0", "127.64.16.3", ready=False),
        server("warm-tier-0-0", "127.64.16.4", namespace="other"),
    ]
)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("warm-tier.ns.svc", ("127.64.16.1", "127.64.16.2")),
        ("warm-tier.ns.svc.cluster.local", ("127.64.16.1", "127.64.16.2")),
        ("warm-tier-2-0.warm-tier.ns.svc", ("127.64.16.3",)),
        ("warm-tier.other.svc", ("127.64.16.4",)),
        ("cold-tier.ns.svc", ()),
        ("example.com", ()),
    ],
)
def test_service_names_stand_for_ready_pods_and_pod_names_for_their_pod(host: str, expected: tuple[str, ...]) -> None:
    assert NAMES.resolve(host) == expected


async def test_engines_get_the_same_answer_as_cluster_dns_would_give() -> None:
    assert await NAMES.answer("warm-tier.ns.svc") == ("127.64.16.1", "127.64.16.2")


Step = list[dict[str, Any]] | Exception


class ScriptedApi:
    """Answers lists and watches from a script, then stays silent."""

    def __init__(self, lists: list[Step], watches: list[list[dict[str, Any] | Exception]]) -> None:
        self._lists = iter(lists)
        self._watches = iter(watches)
        self.versions: list[str] = []
        self.silent = asyncio.Event()

    async def get(self, path: str, **params: str) -> dict[str, Any]:
        assert path == "/things"
        assert params["fieldSelector"] == "x"
        step = next(self._lists)
        if isinstance(step, Exception):
            raise step
        return {"items": step, "metadata": {"resourceVersion": "100"}}

    async def watch(self, path: str, **params: Any) -> AsyncIterator[dict[str, Any]]:
        assert path == "/things"
        self.versions.append(params["resourceVersion"])
        for step in next(self._watches, []):
            if isinstance(step, Exception):
                raise step
            yield step
        if len(self.versions) > 1:
            self.silent.set()
            await asyncio.Event().wait()


def thing(uid: str, version: int) -> dict[str, Any]:
    return {"metadata": {"uid": uid, "name": uid, "resourceVersion": str(version)}}


async def reflected(api: ScriptedApi) -> tuple[Reflector, list[tuple[str | None, str | None]]]:
    """Runs a reflector until its script is over; (reflector, (old, new) resource versions in order)."""
    seen: list[tuple[str | None, str | None]] = []

    def version(item: dict[str, Any] | None) -> str | None:
        return None if item is None else f"{item['metadata']['uid']}{item['metadata']['resourceVersion']}"

    reflector = Reflector(
        cast("ApiServer", api), "/things", lambda old, new: seen.append((version(old), version(new))), fieldSelector="x"
    )
    running = asyncio.create_task(reflector.run())
    over = asyncio.create_task(api.silent.wait())
    done, _ = await asyncio.wait({running, over}, timeout=10, return_when=asyncio.FIRST_COMPLETED)
    assert done, "the script was not played within 10 s"
    running.cancel()
    over.cancel()
    results = await asyncio.gather(running, over, return_exceptions=True)
    if isinstance(results[0], Exception):
        raise results[0]
    return reflector, seen


async def test_changes_arrive_in_order_and_the_watch_goes_on_where_it_broke() -> None:
    events: list[dict[str, Any] | Exception] = [
        {"type": "MODIFIED", "object": thing("a", 101)},
        {"type": "ADDED", "object": thing("b", 102)},
        {"type": "BOOKMARK", "object": thing("", 110)},
        ConnectionResetError("gone"),
    ]
    api = ScriptedApi([[thing("a", 90)]], [events, [{"type": "DELETED", "object": thing("a", 111)}]])
    reflector, seen = await reflected(api)
    assert seen == [(None, "a90"), ("a90", "a101"), (None, "b102"), ("a111", None)]
    assert api.versions == ["100", "110"]
    assert reflector.relists == 1


async def test_expired_history_is_replaced_by_a_list_that_reports_what_was_missed() -> None:
    api = ScriptedApi(
        [[thing("a", 90), thing("b", 91)], [thing("b", 91), thing("c", 120)]],
        [[ApiError(410, "Expired", "too old")], []],
    )
    reflector, seen = await reflected(api)
    assert seen == [(None, "a90"), (None, "b91"), ("a90", None), (None, "c120")]
    assert reflector.relists == 2
    assert set(reflector.objects) == {"b", "c"}


async def test_an_api_server_that_is_down_is_asked_again() -> None:
    api = ScriptedApi([ApiError(503, "Unavailable", "later"), [thing("a", 1)]], [[], []])
    _, seen = await reflected(api)
    assert seen == [(None, "a1")]


async def test_missing_rights_end_the_watch_with_the_servers_words() -> None:
    api = ScriptedApi([ApiError(403, "Forbidden", "cannot list")], [])
    with pytest.raises(ApiError, match="cannot list"):
        await reflected(api)


@given(st.text(max_size=60))
def test_any_annotation_is_either_a_fault_or_refused_with_help(text: str) -> None:
    for parse in (parse_node_faults, parse_pod_faults):
        try:
            parse(text)
        except FaultError as error:
            assert "use" in str(error) or "duration" in str(error)  # noqa: PT017 - most texts are refused
