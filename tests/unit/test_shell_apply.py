"""Compare, then apply: what is written, with which rights, and what a failure of one object means for the others."""

import copy
from typing import Any, cast

import pytest

from retinue.api.labels import MANAGED_BY, RETINUE, ROUTABLE, SPEC_HASH
from retinue.plan import Apply, Delete, Key, Manager, Manifest, Plan
from retinue_operator.apply import Applier, Outcome, WriteError
from retinue_operator.cache import Cache
from retinue_operator.client import KubeClient
from retinue_operator.errors import ApiDown, Conflict, ErrorClass, InvalidObject, KubeError, NotFound, Throttled
from retinue_operator.metrics import Metrics
from retinue_operator.status import StatusWriter, with_errors


class FakeServer:
    """Answers writes like an API server that merges; `refuse` maps names to errors."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], Manifest] = {}
        self.calls: list[tuple[Any, ...]] = []
        self.refuse: dict[str, KubeError] = {}
        self.version = 100
        self.keeps: dict[str, Any] = {}
        self.versions: dict[str, str | None] = {}

    async def apply(self, manifest: Manifest, manager: str, *, force: bool = True, subresource: str = "") -> Manifest:
        name = manifest["metadata"]["name"]
        self.calls.append(("apply", name, str(manager), force, manifest["metadata"].get("uid")))
        self.versions[name] = manifest["metadata"].get("resourceVersion")
        if name in self.refuse:
            raise self.refuse[name]
        key = (manifest["kind"], name)
        live = copy.deepcopy(self.objects.get(key, {}))
        merged = {**live, **copy.deepcopy(manifest)}
        merged["spec"] = {**live.get("spec", {}), **manifest.get("spec", {}), **self.keeps}
        self.version += 1
        merged["metadata"] = {**live.get("metadata", {}), **manifest["metadata"], "resourceVersion": str(self.version)}
        merged["metadata"].setdefault("uid", f"uid-{name}")
        self.objects[key] = merged
        del subresource
        return copy.deepcopy(merged)

    async def apply_status(self, manifest: Manifest) -> Manifest:
        return await self.apply(manifest, Manager.STATUS, subresource="status")

    async def get(self, kind: str, _: str, name: str) -> Manifest:
        if (kind, name) not in self.objects:
            raise NotFound("no such object")
        return self.objects[kind, name]

    async def delete(
        self, kind: str, _: str, name: str, *, uid: str, version: str | None, grace_seconds: int | None
    ) -> Manifest:
        self.versions[name] = version
        self.calls.append(("delete", name, uid, grace_seconds))
        if name in self.refuse:
            raise self.refuse[name]
        self.objects.pop((kind, name), None)
        return {"kind": "Status", "status": "Success"}


def pod(name: str, image: str = "v1", **metadata: Any) -> Manifest:
    labels = {MANAGED_BY: RETINUE}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "ns", "labels": labels, **metadata},
        "spec": {"image": image},
    }


class Bench:
    def __init__(self) -> None:
        self.server = FakeServer()
        self.cache = Cache()
        self.applier = Applier(cast(KubeClient, self.server), self.cache, Metrics())
        self.statuses = StatusWriter(cast(KubeClient, self.server), self.cache, Metrics())

    async def apply(self, *manifests: Manifest, manager: Manager = Manager.OPERATOR) -> Outcome:
        return await self.applier.execute(Plan(apply=tuple(Apply(manifest, manager) for manifest in manifests)))

    def foreign_edit(self, name: str, **spec: Any) -> None:
        live = copy.deepcopy(self.server.objects["Pod", name])
        live["spec"].update(spec)
        self.server.version += 1
        live["metadata"]["resourceVersion"] = str(self.server.version)
        self.server.objects["Pod", name] = live
        self.cache.put(live)


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_a_missing_object_is_created_without_force_and_a_second_plan_writes_nothing(bench: Bench) -> None:
    assert (await bench.apply(pod("a"))).written == ("apply Pod a",)
    assert bench.server.calls == [("apply", "a", "retinue", False, None)]
    assert SPEC_HASH in bench.server.objects["Pod", "a"]["metadata"]["annotations"]
    again = await bench.apply(pod("a"))
    assert (again.written, again.skipped) == ((), 1)
    assert len(bench.server.calls) == 1


async def test_a_changed_plan_is_written_to_exactly_the_object_it_was_made_for(bench: Bench) -> None:
    await bench.apply(pod("a"))
    await bench.apply(pod("a", image="v2"))
    assert bench.server.calls[-1] == ("apply", "a", "retinue", True, "uid-a")


async def test_a_foreign_edit_is_repaired_once(bench: Bench) -> None:
    await bench.apply(pod("a"))
    bench.foreign_edit("a", image="theirs", other="kept")
    assert (await bench.apply(pod("a"))).written == ("apply Pod a",)
    assert bench.server.objects["Pod", "a"]["spec"] == {"image": "v1", "other": "kept"}
    assert (await bench.apply(pod("a"))).written == ()


async def test_a_value_that_the_server_insists_on_is_written_once_and_not_for_ever(bench: Bench) -> None:
    bench.server.keeps = {"image": "normalised"}
    assert (await bench.apply(pod("a"))).written == ("apply Pod a",)
    for _ in range(3):
        assert (await bench.apply(pod("a"))).written == ()
    bench.foreign_edit("a", image="theirs")
    assert (await bench.apply(pod("a"))).written == ("apply Pod a",)


async def test_the_autoscaler_neither_creates_nor_stamps(bench: Bench) -> None:
    partial = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "ns"}, "spec": {"replicas": 3}}
    assert (await bench.apply(partial, manager=Manager.AUTOSCALER)).skipped == 1
    assert bench.server.calls == []
    await bench.apply(pod("a"))
    stamp = bench.server.objects["Pod", "a"]["metadata"]["annotations"]
    await bench.apply(partial, manager=Manager.AUTOSCALER)
    assert bench.server.objects["Pod", "a"]["metadata"]["annotations"] == stamp
    assert bench.server.objects["Pod", "a"]["spec"] == {"image": "v1", "replicas": 3}
    assert (await bench.apply(partial, manager=Manager.AUTOSCALER)).written == ()


async def test_one_failure_stops_neither_the_other_applies_nor_the_deletes(bench: Bench) -> None:
    await bench.apply(pod("old"))
    bench.server.refuse["b"] = InvalidObject("spec.image: required", 422)
    plan = Plan(
        apply=(Apply(pod("a")), Apply(pod("b")), Apply(pod("c"))), delete=(Delete("v1", "Pod", "ns", "old", "uid-old"),)
    )
    outcome = await bench.applier.execute(plan)
    assert outcome.written == ("apply Pod a", "apply Pod c", "delete Pod old")
    assert [str(error) for error in outcome.errors] == ["apply Pod ns/b: spec.image: required"]
    assert outcome.errors[0].error_class == ErrorClass.INVALID_OBJECT


async def test_what_the_server_asks_to_wait_is_passed_on(bench: Bench) -> None:
    bench.server.refuse["a"] = Throttled("slow down", retry_after=9)
    assert (await bench.apply(pod("a"))).errors[0].retry_after == 9


async def test_after_a_conflict_the_cache_is_read_again(bench: Bench) -> None:
    await bench.apply(pod("a"))
    del bench.server.objects["Pod", "a"]
    bench.server.refuse["a"] = Conflict("uid mismatch", 409)
    assert (await bench.apply(pod("a", image="v2"))).errors[0].error_class == ErrorClass.CONFLICT
    assert bench.cache.get("Pod", "ns", "a") is None


async def test_a_name_of_somebody_else_is_told_and_stays_out_of_the_cache(bench: Bench) -> None:
    foreign = pod("a", labels={}, uid="theirs", resourceVersion="7")
    bench.server.objects["Pod", "a"] = foreign
    bench.server.refuse["a"] = Conflict("field manager conflict", 409)
    assert (await bench.apply(pod("a"))).errors[0].error_class == ErrorClass.NAME_TAKEN
    assert bench.cache.get("Pod", "ns", "a") is None


async def test_deletes_hit_exactly_one_uid_and_are_not_repeated(bench: Bench) -> None:
    await bench.apply(pod("a"))
    wrong = Plan(delete=(Delete("v1", "Pod", "ns", "a", "another-uid"),))
    assert (await bench.applier.execute(wrong)).written == ()
    right = Plan(delete=(Delete("v1", "Pod", "ns", "a", "uid-a", grace_seconds=30),))
    assert (await bench.applier.execute(right)).written == ("delete Pod a",)
    assert bench.server.calls[-1] == ("delete", "a", "uid-a", 30)
    assert (await bench.applier.execute(right)).written == ()


async def test_what_takes_something_away_is_bound_to_the_version_that_was_seen(bench: Bench) -> None:
    await bench.apply(pod("a"))
    await bench.apply(pod("a", image="v2"))
    assert bench.server.versions["a"] is None
    for manager, part in (
        (Manager.INSTANCE, {"labels": {ROUTABLE: "false"}}),
        (Manager.AUTOSCALER, {"annotations": {"size": "3"}}),
    ):
        seen = bench.server.objects["Pod", "a"]["metadata"]["resourceVersion"]
        partial = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "ns", **part}}
        assert (await bench.apply(partial, manager=manager)).written
        assert bench.server.versions["a"] == seen
    back = {"name": "a", "namespace": "ns", "labels": {ROUTABLE: "true"}}
    await bench.apply({"apiVersion": "v1", "kind": "Pod", "metadata": back}, manager=Manager.INSTANCE)
    assert bench.server.versions["a"] is None
    seen = bench.server.objects["Pod", "a"]["metadata"]["resourceVersion"]
    await bench.applier.execute(Plan(delete=(Delete("v1", "Pod", "ns", "a", "uid-a"),)))
    assert bench.server.versions["a"] == seen


async def test_an_object_that_is_being_deleted_is_left_alone_unless_the_grace_gets_shorter(bench: Bench) -> None:
    ending = pod("a", uid="u", resourceVersion="5", deletionTimestamp="now", deletionGracePeriodSeconds=600)
    bench.cache.put(ending)
    assert (await bench.apply(pod("a"))).skipped == 1
    for grace, expected in ((None, ()), (600, ()), (0, ("delete Pod a",))):
        plan = Plan(delete=(Delete("v1", "Pod", "ns", "a", "u", grace_seconds=grace),))
        assert (await bench.applier.execute(plan)).written == expected


KEY = Key("KVCacheTier", "ns", "t")
TIER: Manifest = {
    "apiVersion": "retinue.dev/v1alpha1",
    "kind": "KVCacheTier",
    "metadata": {"name": "t", "namespace": "ns", "uid": "u", "resourceVersion": "5"},
}


async def test_a_status_is_written_if_a_field_came_changed_or_went(bench: Bench) -> None:
    bench.cache.put(TIER)
    for status in ({"members": 1}, {"members": 2}, {"members": 2, "hitRate": "0.9"}, {"members": 2}):
        assert (await bench.statuses.write(KEY, status)).written == ("status KVCacheTier t",)
        assert (await bench.statuses.write(KEY, status)).written == ()


async def test_the_status_of_an_object_that_is_gone_is_not_written(bench: Bench) -> None:
    assert (await bench.statuses.write(KEY, {"members": 1})).skipped == 1
    assert bench.server.calls == []


async def test_a_status_that_cannot_be_written_is_an_error_like_any_other(bench: Bench) -> None:
    bench.cache.put(TIER)
    bench.server.refuse["t"] = ApiDown("no answer")
    assert (await bench.statuses.write(KEY, {"members": 1})).errors[0].verb == "status"


def failure(error_class: ErrorClass, message: str = "no") -> WriteError:
    return WriteError("apply", "Pod", "ns", "a", error_class, message)


READY = {"type": "Ready", "status": "True", "reason": "AsDesired", "message": "", "lastTransitionTime": "t0"}


def test_errors_that_pass_by_themselves_do_not_show_in_the_status() -> None:
    status = {"conditions": [READY]}
    assert with_errors(status, {}, (failure(ErrorClass.CONFLICT), failure(ErrorClass.API_DOWN)), 3, 0.0) == status


def test_errors_that_need_a_hand_make_it_degraded_with_all_messages() -> None:
    errors = (failure(ErrorClass.FORBIDDEN, "may not"), failure(ErrorClass.INVALID_OBJECT, "bad field"))
    status = with_errors({"conditions": [READY]}, {}, errors, 3, 0.0)
    degraded = status["conditions"][0]
    assert (degraded["type"], degraded["status"], degraded["reason"]) == ("Degraded", "True", "Forbidden")
    assert degraded["message"] == "apply Pod ns/a: may not; apply Pod ns/a: bad field"
    assert degraded["lastTransitionTime"] == "1970-01-01T00:00:00Z"
    # While it stays degraded the time of the transition stays too.
    later = with_errors({"conditions": [READY]}, status, errors, 4, 60.0)
    assert later["conditions"][0]["lastTransitionTime"] == "1970-01-01T00:00:00Z"


def test_a_degradation_that_was_planned_keeps_its_reason_and_gets_the_error_joined() -> None:
    planned = {**READY, "type": "Degraded", "reason": "InstanceFailed", "message": "instance a failed"}
    status = with_errors({"conditions": [planned]}, {}, (failure(ErrorClass.FORBIDDEN),), 3, 0.0)
    assert status["conditions"][0]["reason"] == "InstanceFailed"
    assert status["conditions"][0]["message"] == "instance a failed; apply Pod ns/a: no"


async def test_a_field_that_the_crd_lacks_is_left_out_of_the_status_and_the_rest_is_written(bench: Bench) -> None:
    await bench.apply(pod("a"))
    apply = bench.server.apply_status
    sent: list[Manifest] = []

    async def strict(manifest: Manifest) -> Manifest:
        sent.append(manifest["status"])
        if "extra" in manifest["status"] or any("why" in entry for entry in manifest["status"]["instances"]):
            lacking = (".status.extra", '.status.instances[name="x"].why')
            listed = "\n".join(f"  {field}: field not declared in schema" for field in lacking)
            raise InvalidObject(f"failed to create typed patch object (ns/a; v1, Kind=Pod): errors:\n{listed}", 500)
        return await apply(manifest)

    bench.server.apply_status = strict  # type: ignore[method-assign]
    status = {"replicas": 2, "extra": 1, "instances": [{"name": "x", "why": "new"}]}
    outcome = await bench.statuses.write(Key("Pod", "ns", "a"), status)
    assert outcome.errors == ()
    assert sent[-1] == {"replicas": 2, "instances": [{"name": "x"}]}
    # What it has learned it need not be told again, and what is as planned is not written again.
    assert (await bench.statuses.write(Key("Pod", "ns", "a"), status)).skipped == 1
    assert len(sent) == 2
