"""What a pod's status says, by the states of its containers."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from retinue_emulator.nodeplugin.containerstate import (
    ContainerState,
    Running,
    Terminated,
    Waiting,
    container_status,
    restored,
)
from retinue_emulator.nodeplugin.podstatus import Failure, Phase, PodView, phase_of, pod_status

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
EARLIER = NOW - timedelta(minutes=5)


def pod(policy: str = "Always", *, conditions: tuple[dict[str, Any], ...] = (), **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "p", "namespace": "n", "uid": "u", "generation": 3},
        "spec": {"restartPolicy": policy, "containers": [{"name": "c", "image": "i"}], **spec},
        "status": {"conditions": list(conditions)},
    }


def container(now: Waiting | Running | Terminated, *, last: Terminated | None = None, **more: Any) -> ContainerState:
    return ContainerState("c", "i", now, last, **more)


def ended(code: int) -> Terminated:
    return Terminated(code, "Error" if code else "Completed", "", EARLIER, NOW)


def view(state: ContainerState, manifest: dict[str, Any] | None = None, **more: Any) -> PodView:
    return PodView(manifest or pod(), "127.64.0.2", "127.64.16.0", EARLIER, (), (state,), **more)


def conditions(status: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {c["type"]: (c["status"], c["reason"]) for c in status["conditions"]}


@pytest.mark.parametrize(
    ("state", "policy", "expected"),
    [
        (container(Waiting()), "Always", Phase.PENDING),
        (container(Running(EARLIER)), "Always", Phase.RUNNING),
        (container(Waiting("CrashLoopBackOff"), last=ended(1)), "Always", Phase.RUNNING),
        (container(ended(1)), "Always", Phase.RUNNING),
        (container(ended(0)), "Always", Phase.RUNNING),
        (container(ended(1)), "OnFailure", Phase.RUNNING),
        (container(ended(0)), "OnFailure", Phase.SUCCEEDED),
        (container(ended(0)), "Never", Phase.SUCCEEDED),
        (container(ended(137)), "Never", Phase.FAILED),
    ],
)
def test_phase_follows_the_containers_and_the_restart_policy(
    state: ContainerState, policy: str, expected: Phase
) -> None:
    assert phase_of(view(state, pod(policy))) is expected


def test_a_deleted_pod_ends_even_if_its_policy_is_to_restart() -> None:
    assert phase_of(view(container(ended(0)), ending=True)) is Phase.SUCCEEDED
    assert phase_of(view(container(ended(137)), ending=True)) is Phase.FAILED


def test_a_pod_that_the_node_refused_has_failed_with_the_reason() -> None:
    failure = Failure("UnexpectedAdmissionError", "no devices")
    status = pod_status(view(container(Waiting()), failure=failure), NOW)
    assert (status["phase"], status["reason"], status["message"]) == (
        "Failed",
        "UnexpectedAdmissionError",
        "no devices",
    )


def test_a_running_container_that_is_not_ready_makes_the_pod_unready() -> None:
    status = pod_status(view(container(Running(EARLIER))), NOW)
    assert conditions(status)["Ready"] == ("False", "ContainersNotReady")
    assert conditions(status)["PodReadyToStartContainers"] == ("True", "")
    assert status["podIPs"] == [{"ip": "127.64.16.0"}]


def test_a_ready_container_makes_the_pod_ready() -> None:
    status = pod_status(view(container(Running(EARLIER), ready=True)), NOW)
    assert conditions(status)["Ready"] == ("True", "")
    assert conditions(status)["ContainersReady"] == ("True", "")


def test_a_readiness_gate_that_nobody_opened_keeps_the_pod_unready() -> None:
    gated = pod(readinessGates=[{"conditionType": "example.com/go"}])
    status = pod_status(view(container(Running(EARLIER), ready=True), gated), NOW)
    assert conditions(status)["ContainersReady"] == ("True", "")
    assert conditions(status)["Ready"] == ("False", "ReadinessGatesNotReady")
    opened = pod(
        conditions=({"type": "example.com/go", "status": "True"},),
        readinessGates=[{"conditionType": "example.com/go"}],
    )
    status = pod_status(view(container(Running(EARLIER), ready=True), opened), NOW)
    assert conditions(status)["Ready"] == ("True", "")


def test_a_condition_keeps_its_time_until_it_changes() -> None:
    old = {"type": "Ready", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z"}
    ready = pod_status(view(container(Running(EARLIER), ready=True), pod(conditions=(old,))), NOW)
    unready = pod_status(view(container(Running(EARLIER)), pod(conditions=(old,))), NOW)
    times = [
        next(c["lastTransitionTime"] for c in status["conditions"] if c["type"] == "Ready")
        for status in (ready, unready)
    ]
    assert times == ["2020-01-01T00:00:00Z", "2026-01-02T03:04:05Z"]


def test_others_conditions_are_left_to_their_writers() -> None:
    status = pod_status(view(container(Running(EARLIER))), NOW)
    assert "PodScheduled" not in conditions(status)


def test_a_restarted_container_shows_how_its_last_run_ended() -> None:
    state = container(Running(NOW), last=ended(1), restarts=2)
    status = container_status(state, {"name": "c"}, "u")
    assert status["restartCount"] == 2
    assert status["lastState"]["terminated"]["exitCode"] == 1
    assert status["containerID"] != status["lastState"]["terminated"]["containerID"]


def test_a_container_that_ran_when_the_plugin_ended_has_lost_power() -> None:
    statuses = [{"name": "c", "restartCount": 1, "state": {"running": {"startedAt": "2026-01-02T03:00:00Z"}}}]
    state = restored({"name": "c", "image": "i"}, statuses, NOW)
    assert isinstance(state.now, Terminated)
    assert (state.now.exit_code, state.now.reason, state.restarts) == (255, "Unknown", 1)


def test_a_container_that_had_ended_is_restored_as_it_was() -> None:
    before = container(ended(3), last=ended(1), restarts=4)
    status = container_status(before, {"name": "c"}, "u")
    assert restored({"name": "c", "image": "i"}, [status], NOW) == before


def test_a_container_in_back_off_goes_on_counting() -> None:
    before = container(Waiting("CrashLoopBackOff"), last=ended(1), restarts=4)
    after = restored({"name": "c", "image": "i"}, [container_status(before, {"name": "c"}, "u")], NOW)
    assert (after.last, after.restarts) == (before.last, 4)


def test_a_pod_that_never_started_is_restored_as_new() -> None:
    assert restored({"name": "c", "image": "i"}, [], NOW) == ContainerState("c", "i")
