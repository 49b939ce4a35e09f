"""An instance on a broken device: it is said so, and another takes its place before it goes, as in a rollout."""

from .fakeworld import FakeWorld, gpu_node, make_pool, world


def serving(**spec: object) -> FakeWorld:
    fake = world(make_pool(replicas=1, **spec))
    fake.run()
    return fake


def test_an_instance_on_a_broken_device_is_replaced_by_another_before_it_drains() -> None:
    fake = serving()
    fake.break_device("coder-prefill-0-0")
    fake.reconcile()
    status, reason, message = fake.condition("Degraded")
    assert (status, reason) == ("True", "DeviceUnhealthy")
    assert "coder-prefill-0: nvidia.com/gpu GPU-7 on node n0 is unhealthy" in message
    assert fake.record("coder-prefill-0").message == "nvidia.com/gpu GPU-7 on node n0 is unhealthy"
    assert list(fake.instances()) == ["coder-prefill-0", "coder-prefill-1"]
    assert fake.pods["coder-prefill-0-0"]["metadata"]["labels"]["retinue.dev/routable"] == "true"
    fake.run()
    assert list(fake.instances()) == ["coder-prefill-1"]
    assert fake.condition("Degraded")[:2] == ("False", "Healthy")
    reasons = [reason for reason, _ in fake.events]
    assert reasons.count("DeviceUnhealthy") == 1
    made = max(index for index, reason in enumerate(reasons) if reason == "InstanceCreated")
    assert reasons.index("Draining") > made
    assert "InstanceRestarted" not in reasons


def test_without_room_for_another_it_goes_on_serving() -> None:
    fake = world(make_pool(replicas=1, parallelism={"tensor": 4}), [gpu_node("only")])
    fake.run()
    fake.break_device("coder-prefill-0-0")
    fake.run()
    assert fake.condition("Ready")[0] == "True"
    assert fake.condition("Degraded")[:2] == ("True", "DeviceUnhealthy")
    assert fake.condition("Placed")[:2] == ("False", "NoFit")
    fake.break_device("coder-prefill-0-0", "Healthy")
    fake.run()
    assert list(fake.instances()) == ["coder-prefill-0"]
    assert fake.condition("Degraded")[:2] == ("False", "Healthy")
    assert fake.record("coder-prefill-0").message is None


def test_where_no_surge_is_allowed_it_drains_first() -> None:
    fake = serving(rollout={"maxSurge": 0, "maxUnavailable": 1})
    fake.break_device("coder-prefill-0-0")
    fake.reconcile()
    assert fake.pods["coder-prefill-0-0"]["metadata"]["labels"]["retinue.dev/routable"] == "false"
    fake.run()
    assert list(fake.instances()) == ["coder-prefill-1"]


def test_a_device_that_nobody_watches_is_not_a_broken_one() -> None:
    fake = serving()
    fake.break_device("coder-prefill-0-0", "Unknown")
    fake.run()
    assert list(fake.instances()) == ["coder-prefill-0"]
    assert fake.condition("Degraded")[:2] == ("False", "Healthy")
