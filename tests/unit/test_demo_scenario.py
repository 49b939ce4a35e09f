"""The demo's scenario: manifests whose times follow the speed, and sessions that make the load rise and fall."""

import re

import pytest
import yaml

from retinue.api import AgentPool, NodeClass
from retinue.api.units import seconds
from retinue_emulator.demo import scenario
from retinue_emulator.inventory import example_inventory, expand


def test_manifests_are_valid_objects_of_their_kinds() -> None:
    objects = scenario.objects(12.0)
    by_kind = {item["kind"]: item for item in objects}
    pool = AgentPool.model_validate(by_kind["AgentPool"])
    assert (pool.metadata.namespace, pool.metadata.name) == (scenario.NAMESPACE, scenario.AGENT_POOL)
    classes = [NodeClass.model_validate(item) for item in objects if item["kind"] == "NodeClass"]
    used = {
        name for role in pool.spec.roles for part in (role.prefill, role.decode) if part for name in part.node_classes
    }
    used |= {tier.spec.node_class for tier in pool.spec.tiers if tier.spec.node_class}
    assert used <= {class_.metadata.name for class_ in classes}


@pytest.mark.parametrize("speed", [1.0, 12.0, 16.0, 100.0])
def test_every_time_in_the_manifests_is_divided_by_the_speed(speed: float) -> None:
    pool = AgentPool.model_validate(next(item for item in scenario.objects(speed) if item["kind"] == "AgentPool"))
    scaling, slo = pool.spec.autoscaling, pool.spec.slo
    assert seconds(slo.ttft.target) == pytest.approx(6.0 / speed, abs=1e-6, rel=0.01)
    assert seconds(slo.itl.target) == pytest.approx(0.012 / speed, abs=1e-6)
    assert seconds(scaling.evaluation_interval) == pytest.approx(24.0 / speed, abs=1e-3)
    assert seconds(scaling.metrics_window) == pytest.approx(120.0 / speed, abs=1e-3)
    assert seconds(scaling.scale_down.stabilization) == pytest.approx(240.0 / speed, abs=1e-3)


def test_node_classes_say_at_which_speed_their_nodes_run() -> None:
    for item in scenario.objects(16.0):
        if item["kind"] == "NodeClass":
            assert item["metadata"]["annotations"]["retinue.dev/time-scale"] == "16"


def test_the_manifest_tells_readers_what_its_times_mean() -> None:
    text = scenario.manifests(12.0)
    assert "12 times as fast as real hardware" in text
    assert "${" not in text
    assert all(item is not None for item in yaml.safe_load_all(text))


def test_a_speed_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="speed must be above zero"):
        scenario.manifests(0.0)


def test_the_inventory_can_hold_every_pool_at_its_largest() -> None:
    pool = AgentPool.model_validate(next(item for item in scenario.objects(12.0) if item["kind"] == "AgentPool"))
    devices: dict[str, int] = {}
    for node in expand(example_inventory("demo")):
        devices[node.preset] = devices.get(node.preset, 0) + len(node.devices)
    wanted: dict[str, int] = {}
    for role in pool.spec.roles:
        for part in (role.prefill, role.decode):
            if part is not None:
                name = part.node_classes[0]
                wanted[name] = wanted.get(name, 0) + part.parallelism.devices * part.replicas.max
    assert all(count <= devices[name] for name, count in wanted.items()), (wanted, devices)


def test_the_load_is_the_reference_session_and_at_least_24_recorded_ones_among_them_trace_0712() -> None:
    trace = scenario.sessions()
    roots = {root.id for root in trace.roots()}
    assert scenario.REFERENCE_SESSION in roots
    assert "trace_0712" in roots
    assert len(roots) - 1 >= 24
    assert re.search(r"29 sessions \(28 recorded, 1 reference\)", scenario.describe(trace))


def test_few_sessions_still_include_the_one_nearest_to_the_reference_session() -> None:
    assert {root.id for root in scenario.sessions(1).roots()} == {scenario.REFERENCE_SESSION, "trace_0712"}
    assert {root.id for root in scenario.sessions(0).roots()} == {scenario.REFERENCE_SESSION}


def test_sessions_start_within_ten_minutes_so_that_the_longest_ends_last() -> None:
    trace = scenario.sessions()
    assert all(0 <= session.start <= 600 for session in trace.sessions)
    ends = [session.start + session.requests[-1].t for session in trace.sessions]
    longest = max(request.t for request in trace.requests())
    assert max(ends) <= max(2280.0, longest)
    assert len({root.start for root in trace.roots()}) > 15
