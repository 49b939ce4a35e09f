"""The outside view notices each broken promise, and nothing else: it is what the kill test is judged by."""

import time
from typing import Any, cast

import pytest

from retinue.conditions import timestamp
from retinue.plan import Manifest
from retinue_emulator.loopback import ControlPlane

from .outsideview import DRAIN_SECONDS, OutsideView

NAMESPACE = "agents"
Events = list[tuple[str, Manifest]]


def pool(name: str, replicas: int) -> Manifest:
    spec = {
        "serves": "PrefillAndDecode",
        "model": {"name": "gpt-oss-20b", "precision": "MXFP4", "kvPrecision": "FP8", "contextWindow": 131072},
        "engine": {"type": "Simulated"},
        "nodeClasses": ["gpu"],
        "replicas": replicas,
        "drain": {"timeout": f"{DRAIN_SECONDS:g}s"},
    }
    metadata = {"name": name, "namespace": NAMESPACE, "uid": f"uid-{name}", "resourceVersion": "1"}
    return {"apiVersion": "retinue.dev/v1alpha1", "kind": "DecodePool", "metadata": metadata, "spec": spec}


class Pods:
    """Versions of pods as a watch would tell of them."""

    def __init__(self) -> None:
        self._version = 10

    def pod(
        self,
        name: str,
        *,
        of: str = "busy",
        rank: int = 0,
        revision: str = "r1",
        routable: bool = True,
        drained_for: float | None = None,
        deleting: bool = False,
    ) -> Manifest:
        """A ready pod of the instance `name`."""
        self._version += 1
        now = time.time()
        metadata: dict[str, Any] = {
            "name": f"{of}-decode-{name}-{rank}",
            "namespace": NAMESPACE,
            "uid": f"uid-{of}-{name}-{rank}",
            "resourceVersion": str(self._version),
            "labels": {
                "app.kubernetes.io/managed-by": "retinue",
                "retinue.dev/pool": of,
                "retinue.dev/pool-kind": "decode",
                "retinue.dev/instance": f"{of}-decode-{name}",
                "retinue.dev/revision": revision,
                "retinue.dev/routable": "true" if routable else "false",
            },
            "creationTimestamp": timestamp(now),
        }
        if drained_for is not None:
            metadata["annotations"] = {"retinue.dev/drain-started": timestamp(now - drained_for)}
        if deleting:
            metadata["deletionTimestamp"] = timestamp(now)
        status = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
        container = {"name": "engine", "env": []}
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": metadata,
            "spec": {"containers": [container]},
            "status": status,
        }


def told(*events: tuple[str, Manifest], in_flight: str | None = None) -> list[str]:
    """The broken promises after these events; names without what they are about."""
    view = OutsideView(cast(ControlPlane, None), NAMESPACE, frozenset({"steady"}))
    for replicas, name in ((2, "busy"), (2, "steady")):
        view._happened("ADDED", pool(name, replicas))
    if in_flight is not None:
        view._world.requests[in_flight] = 1
    started = False
    for type_, manifest in events:
        if type_ != "ADDED" and not started:
            view.hands_off()
            started = True
        view._happened(type_, manifest)
    return [text.partition(":")[0] for text in view.broken]


def test_a_proper_drain_breaks_nothing() -> None:
    pods = Pods()
    three = [("ADDED", pods.pod(name)) for name in "012"]
    assert (
        told(
            *three,
            ("MODIFIED", pods.pod("2", routable=False, drained_for=3)),
            ("MODIFIED", pods.pod("2", routable=False, drained_for=3, deleting=True)),
            ("DELETED", pods.pod("2", routable=False, drained_for=3, deleting=True)),
        )
        == []
    )


@pytest.mark.parametrize("drained_for", [None, 5.0])
def test_a_deletion_without_a_drain_or_with_a_request_in_flight_is_noticed(drained_for: float | None) -> None:
    pods = Pods()
    routable = drained_for is None
    found = told(
        ("ADDED", pods.pod("0")),
        ("ADDED", pods.pod("1")),
        ("ADDED", pods.pod("2", routable=routable, drained_for=drained_for)),
        ("MODIFIED", pods.pod("2", routable=routable, drained_for=drained_for, deleting=True)),
        in_flight=None if routable else "uid-busy-2-0",
    )
    assert found == ["a_serving_instance_ends_only_drained"]


def test_after_the_drain_timeout_a_request_in_flight_may_be_cut() -> None:
    pods = Pods()
    late = {"routable": False, "drained_for": DRAIN_SECONDS + 1}
    found = told(
        *(("ADDED", pods.pod(name)) for name in "01"),
        ("ADDED", pods.pod("2", **late)),  # type: ignore[arg-type]
        ("MODIFIED", pods.pod("2", deleting=True, **late)),  # type: ignore[arg-type]
        in_flight="uid-busy-2-0",
    )
    assert found == []


def test_taking_more_out_of_service_than_the_spec_allows_is_noticed() -> None:
    pods = Pods()
    found = told(
        ("ADDED", pods.pod("0")),
        ("ADDED", pods.pod("1")),
        ("MODIFIED", pods.pod("1", routable=False, drained_for=0)),
    )
    assert found == ["enough_instances_serve_on"]


def test_a_second_revision_in_one_instance_is_noticed() -> None:
    pods = Pods()
    assert told(("ADDED", pods.pod("0")), ("ADDED", pods.pod("0", rank=1, revision="r2"))) == [
        "an_instance_has_one_revision"
    ]


def test_a_touch_of_an_undisturbed_instance_is_noticed() -> None:
    pods = Pods()
    found = told(
        *(("ADDED", pods.pod(name, of="steady")) for name in "012"),
        ("MODIFIED", pods.pod("2", of="steady", routable=False, drained_for=0)),
    )
    assert found == ["an_undisturbed_instance_is_never_touched"]
