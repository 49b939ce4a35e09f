"""The cache never goes back in time, whatever the order in which events, lists and answers to writes arrive."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from retinue.api.labels import POOL
from retinue.plan import Manifest
from retinue_operator.cache import Cache


def pod(name: str, version: int, uid: str = "", namespace: str = "ns", **fields: Any) -> Manifest:
    metadata = {"name": name, "namespace": namespace, "uid": uid or f"uid-{name}", "resourceVersion": str(version)}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {**metadata, **fields}}


def names(manifests: list[Manifest]) -> list[str]:
    return [manifest["metadata"]["name"] for manifest in manifests]


class Recorded(Cache):
    """A cache that notes its changes as (name before, name after) with versions."""

    def __init__(self) -> None:
        super().__init__()
        self.story: list[tuple[str | None, str | None]] = []
        self.subscribe(lambda old, new: self.story.append((brief(old), brief(new))))


def brief(manifest: Manifest | None) -> str | None:
    return None if manifest is None else f"{manifest['metadata']['uid']}@{manifest['metadata']['resourceVersion']}"


def test_an_older_event_never_overwrites_a_newer_object() -> None:
    cache = Cache()
    assert cache.put(pod("a", 5, labels={"x": "new"}))
    assert not cache.put(pod("a", 4, labels={"x": "old"}))
    found = cache.get("Pod", "ns", "a")
    assert found is not None
    assert found["metadata"]["labels"] == {"x": "new"}


def test_a_deleted_object_is_not_brought_back_by_a_late_answer_or_event() -> None:
    cache = Cache()
    cache.put(pod("a", 5))
    assert cache.remove(pod("a", 7))
    assert not cache.put(pod("a", 6))
    assert cache.get("Pod", "ns", "a") is None


def test_a_deletion_of_a_predecessor_leaves_the_successor_alone() -> None:
    cache = Cache()
    cache.put(pod("a", 5, uid="old"))
    cache.put(pod("a", 9, uid="new"))
    assert not cache.remove(pod("a", 8, uid="old"))
    found = cache.get("Pod", "ns", "a")
    assert found is not None
    assert found["metadata"]["uid"] == "new"


def test_a_deletion_seen_before_the_object_keeps_it_out() -> None:
    cache = Cache()
    cache.remove(pod("a", 8))
    assert not cache.put(pod("a", 7))


def test_a_list_removes_what_it_lacks_but_not_what_is_newer_than_it() -> None:
    cache = Recorded()
    cache.put(pod("gone", 3))
    cache.put(pod("kept", 4))
    cache.put(pod("written-after-the-list", 12))
    changed = cache.replace("Pod", [pod("kept", 4), pod("missed", 8)], resource_version=10)
    assert names(cache.select("Pod")) == ["kept", "missed", "written-after-the-list"]
    assert changed == 2
    assert cache.story[-2:] == [("uid-gone@3", None), (None, "uid-missed@8")]


def test_a_list_of_one_namespace_says_nothing_about_others() -> None:
    cache = Cache()
    cache.put(pod("a", 1, namespace="one", uid="1"))
    cache.put(pod("a", 2, namespace="two", uid="2"))
    cache.replace("Pod", [], resource_version=10, namespace="one")
    assert [manifest["metadata"]["namespace"] for manifest in cache.select("Pod")] == ["two"]


def test_subscribers_hear_of_changes_but_not_of_mere_versions() -> None:
    cache = Recorded()
    cache.put(pod("a", 1, labels={"x": "1"}))
    cache.put(pod("a", 2, labels={"x": "1"}))
    cache.put(pod("a", 3, labels={"x": "2"}))
    cache.remove(pod("a", 4))
    assert cache.story == [(None, "uid-a@1"), ("uid-a@2", "uid-a@3"), ("uid-a@3", None)]


def test_node_heartbeats_are_no_change() -> None:
    def node(version: int, beat: str) -> Manifest:
        status = {"conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": beat}], "images": [beat]}
        metadata = {"name": "n", "uid": "u", "resourceVersion": str(version)}
        return {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "status": status}

    cache = Recorded()
    cache.put(node(1, "10:00"))
    cache.put(node(2, "10:01"))
    assert len(cache.story) == 1


def test_look_ups_by_label_and_owner_follow_every_change() -> None:
    cache = Cache()
    cache.put(pod("a", 1, labels={POOL: "p", "other": "1"}, ownerReferences=[{"uid": "owner"}]))
    cache.put(pod("b", 2, labels={POOL: "p", "other": "2"}))
    assert names(cache.select("Pod", "ns", {POOL: "p"})) == ["a", "b"]
    assert names(cache.select("Pod", None, {POOL: "p", "other": "2"})) == ["b"]
    assert names(cache.select("Pod", "elsewhere", {POOL: "p"})) == []
    assert names(cache.owned_by("owner")) == ["a"]
    cache.put(pod("a", 3, labels={POOL: "q"}))
    assert names(cache.select("Pod", "ns", {POOL: "p"})) == ["b"]
    assert names(cache.select("Pod", "ns", {POOL: "q"})) == ["a"]
    assert cache.owned_by("owner") == []
    cache.remove(pod("a", 4))
    assert cache.select("Pod", "ns", {POOL: "q"}) == []
    assert cache.count("Pod") == 1


HISTORY = [
    ("put", pod("a", 1, uid="1", labels={POOL: "p"})),
    ("put", pod("a", 2, uid="1", labels={POOL: "q"})),
    ("remove", pod("a", 3, uid="1")),
    ("put", pod("a", 4, uid="2", labels={POOL: "p"})),
    ("put", pod("a", 5, uid="2", labels={POOL: "r"})),
]


@given(st.permutations(HISTORY), st.lists(st.sampled_from(HISTORY), max_size=5))
def test_any_order_and_any_repeats_of_a_history_end_in_the_same_cache(
    order: list[tuple[str, Manifest]], repeats: list[tuple[str, Manifest]]
) -> None:
    cache = Cache()
    for verb, manifest in [*order, *repeats]:
        getattr(cache, verb)(manifest)
    assert cache.select("Pod") == [HISTORY[-1][1]]
    assert cache.select("Pod", "ns", {POOL: "r"}) == [HISTORY[-1][1]]
    assert cache.select("Pod", "ns", {POOL: "p"}) == []
