"""What controllers rely on: who is asked about a change, reservations that outlast planning, settings, health."""

from collections.abc import Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import ValidationError

from retinue.api import DecodePool
from retinue.plan import Key, Manifest, Plan
from retinue_operator.cache import Cache
from retinue_operator.controller import EVERY, WAITING, World
from retinue_operator.controllers import all_controllers
from retinue_operator.controllers.pools import PoolController
from retinue_operator.dispatch import Dispatcher
from retinue_operator.health import Check, Heartbeat, report
from retinue_operator.prometheus.client import PrometheusClient
from retinue_operator.settings import Settings


def object_(kind: str, name: str, namespace: str = "ns", version: int = 1, **labels: str) -> Manifest:
    metadata = {"name": name, "namespace": namespace, "uid": f"{kind}-{namespace}-{name}", "labels": labels}
    return {"apiVersion": "v1", "kind": kind, "metadata": {**metadata, "resourceVersion": str(version)}}


class Mapped:
    """A controller of pools that maps pods by label, nodes to all pools, and stumbles over one pod."""

    kind = "DecodePool"

    def keys_for(self, kind: str, obj: Manifest) -> Iterable[Key]:
        if obj["metadata"]["name"] == "odd":
            raise KeyError("odd")
        if kind == "Pod":
            yield Key(self.kind, obj["metadata"]["namespace"], obj["metadata"]["labels"]["pool"])
        if kind == "Node":
            yield Key(self.kind, "", EVERY)
        if kind == "Service":
            yield Key(self.kind, obj["metadata"]["namespace"], EVERY)
        if kind == "KVCacheTier":
            yield Key(self.kind, obj["metadata"]["namespace"], WAITING)
        if kind == "NodeClass":
            yield Key(self.kind, "", EVERY)

    async def reconcile(self, key: Key, world: World) -> Plan | None:
        raise NotImplementedError


def dispatching() -> tuple[Cache, list[str]]:
    cache = Cache()
    added: list[str] = []
    dispatcher = Dispatcher([Mapped()], cache, lambda key, _: added.append(f"{key.namespace}/{key.name}"))
    cache.put(object_("DecodePool", "a"))
    cache.put(object_("DecodePool", "b"))
    cache.put(object_("DecodePool", "c", namespace="other"))
    cache.subscribe(dispatcher.changed)
    return cache, added


def test_a_change_of_an_own_object_enqueues_it_and_a_deletion_too() -> None:
    cache, added = dispatching()
    cache.put(object_("DecodePool", "d", version=2))
    cache.remove(object_("DecodePool", "d", version=3))
    assert added == ["ns/d", "ns/d"]


def test_a_child_that_moves_concerns_its_old_and_its_new_owner() -> None:
    cache, added = dispatching()
    cache.put(object_("Pod", "p", pool="a"))
    cache.put(object_("Pod", "p", version=2, pool="b"))
    assert added == ["ns/a", "ns/a", "ns/b"]


def test_what_changes_twice_over_for_the_same_owner_is_added_once() -> None:
    cache, added = dispatching()
    cache.put(object_("Pod", "p", pool="a"))
    added.clear()
    cache.put({**object_("Pod", "p", version=2, pool="a"), "status": {"phase": "Running"}})
    assert added == ["ns/a"]


def test_a_status_of_a_class_and_a_heartbeat_of_a_node_concern_nobody_else() -> None:
    cache, added = dispatching()
    seen = {**object_("NodeClass", "c", namespace=""), "spec": {"family": "GPU"}, "status": {"nodes": 1}}
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    node = {**object_("Node", "n", namespace=""), "spec": {}, "status": {"conditions": [ready]}}
    cache.put(seen)
    cache.put(node)
    added.clear()
    later = object_("NodeClass", "c", namespace="", version=2)
    cache.put({**later, "spec": {"family": "GPU"}, "status": {"nodes": 2}})
    busy = {"conditions": [ready, {"type": "DiskPressure", "status": "True"}]}
    cache.put({**object_("Node", "n", namespace="", version=2), "spec": {}, "status": busy})
    assert added == []
    cache.put({**later, "metadata": {**later["metadata"], "resourceVersion": "3"}, "spec": {"family": "CPU"}})
    assert added == ["ns/a", "ns/b", "other/c"]
    added.clear()
    gone = {"conditions": [{**ready, "status": "False"}]}
    cache.put({**object_("Node", "n", namespace="", version=3), "spec": {}, "status": gone})
    assert added == ["ns/a", "ns/b", "other/c"]


def test_a_node_concerns_the_pools_that_wait_and_those_with_pods_on_it() -> None:
    cache = Cache()
    added: list[str] = []
    controllers = [PoolController(DecodePool, None)]
    dispatcher = Dispatcher(controllers, cache, lambda key, _: added.append(f"{key.kind} {key.name}"))
    for name, placed in (("there", "True"), ("elsewhere", "True"), ("waiting", "False")):
        status = {"conditions": [{"type": "Placed", "status": placed}]}
        cache.put({**object_("DecodePool", name), "status": status})
        tags = {"retinue.dev/pool": name, "retinue.dev/pool-kind": "decode"}
        cache.put({**object_("Pod", f"{name}-0", **tags), "spec": {"nodeName": f"node-{name}"}})
    cache.subscribe(dispatcher.changed)
    cache.put(object_("Node", "node-there", namespace=""))
    assert set(added) == {"DecodePool waiting", "DecodePool there"}
    cache.put(object_("Node", "node-elsewhere", namespace=""))
    cache.remove(object_("Pod", "elsewhere-0", version=2))
    added.clear()
    cache.remove(object_("Node", "node-elsewhere", namespace="", version=2))
    assert set(added) == {"DecodePool waiting"}


def test_every_stands_for_all_objects_or_for_those_of_a_namespace() -> None:
    cache, added = dispatching()
    cache.put(object_("Node", "n", namespace=""))
    assert added == ["ns/a", "ns/b", "other/c"]
    added.clear()
    cache.put(object_("Service", "s"))
    assert added == ["ns/a", "ns/b"]


def test_a_mapping_that_fails_on_one_object_does_not_disturb_the_others() -> None:
    cache, added = dispatching()
    cache.put(object_("Pod", "odd", pool="a"))
    cache.put(object_("Pod", "p", pool="a"))
    assert added == ["ns/a"]


def world() -> World:
    nothing = cast(Any, None)
    return World(Cache(), nothing, nothing, nothing, nothing, lambda: 0.0)


def test_waiting_stands_for_those_whose_status_says_that_something_found_no_place() -> None:
    cache, added = dispatching()
    for name, status in (("a", "False"), ("b", "True")):
        conditions = [{"type": "Placed", "status": status}]
        cache.put({**object_("DecodePool", name, version=2), "status": {"conditions": conditions}})
    added.clear()
    cache.put(object_("KVCacheTier", "t"))
    assert added == ["ns/a"]


def test_what_a_reconcile_reserves_is_released_when_its_plan_is_executed_or_fails() -> None:
    shared = world()
    story: list[str] = []

    def fails() -> None:
        with shared.reconciling():
            shared.until_executed(lambda: story.append("released"))
            story.append("executes")
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError):
        fails()
    assert story == ["executes", "released"]


def test_outside_of_a_reconcile_nothing_stays_reserved() -> None:
    story: list[str] = []
    world().until_executed(lambda: story.append("released"))
    assert story == ["released"]


def test_flags_win_over_the_environment_and_lists_are_comma_separated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETINUE_WORKERS", "3")
    monkeypatch.setenv("RETINUE_NAMESPACES", "agents, lab,")
    assert Settings().workers == 3
    assert Settings().namespaces == ("agents", "lab")
    assert Settings(workers=5, namespaces=("one",)).workers == 5


@pytest.mark.parametrize(
    "wrong", [{"workers": 0}, {"http_port": 70000}, {"log_format": "xml"}, {"lease_renew_deadline": 20.0}]
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Settings(**wrong)


def test_the_history_file_is_off_unless_given(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().history_file is None
    monkeypatch.setenv("RETINUE_HISTORY_FILE", "/tmp/decisions.jsonl")
    assert Settings().history_file == Path("/tmp/decisions.jsonl")


def test_a_report_names_each_check_and_fails_if_one_does() -> None:
    good, bad = Check("good", lambda: None), Check("bad", lambda: "it is late")
    assert report([good]).healthy
    found = report([good, bad])
    assert not found.healthy
    assert found.text == "[+] good ok\n[-] bad failed: it is late\n"


def test_a_loop_that_does_not_turn_fails_its_heartbeat() -> None:
    now = 0.0
    heart = Heartbeat(limit=10, clock=lambda: now)
    now = 9.0
    assert heart.failure() is None
    now = 11.0
    assert heart.failure() == "the event loop has not turned for 11.0 s"
    heart.beat()
    assert heart.failure() is None
    assert heart.worst_lag == 10.0


async def test_the_connections_to_prometheus_end_with_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[PrometheusClient] = []

    async def close(client: PrometheusClient) -> None:
        closed.append(client)

    monkeypatch.setattr(PrometheusClient, "close", close)
    async with AsyncExitStack() as stack:
        made = all_controllers(Settings(prometheus_url="http://prometheus:9090"), stack)
        assert [controller.kind for controller in made] == [
            "NodeClass",
            "KVCacheTier",
            "PrefillPool",
            "DecodePool",
            "AgentPool",
        ]
        assert closed == []
    assert len(closed) == 1
