"""An instance whose containers cannot be started: it is said why and what to do, and what served serves on."""

import pytest

from retinue.conditions import Reason, epoch
from retinue.pool.containers import failure, obstacle
from retinue.pool.snapshot import pod_view

from .fakeworld import FakeWorld, make_pool, world

PULL = 'failed to pull and unpack image "registry/engine:9": not found'
BACK_OFF = f'Back-off pulling image "registry/engine:9": ErrImagePull: {PULL}'


def rolling() -> FakeWorld:
    """Two instances serve; a third with a new image was made beside them and cannot be started."""
    fake = world(make_pool(replicas=2))
    fake.run()
    fake.change(engine={"type": "Simulated", "image": "registry/engine:9"})
    for _ in range(3):
        fake.reconcile()
        fake.advance(1)
    assert sorted(fake.instances()) == ["coder-prefill-0", "coder-prefill-1", "coder-prefill-2"]
    fake.hold_up("coder-prefill-2-0", "ErrImagePull", PULL)
    return fake


def test_an_image_that_cannot_be_pulled_is_told_with_what_to_do() -> None:
    fake = rolling()
    fake.reconcile()
    status, reason, message = fake.condition("Degraded")
    assert (status, reason) == ("True", "ImageNotPulled")
    assert "coder-prefill-2 does not start: image registry/engine:9 of container engine cannot be pulled" in message
    assert "not found" in message
    assert "correct the image (spec.engine.image)" in message
    assert "cannot be pulled" in fake.record("coder-prefill-2").message
    assert fake.condition("Progressing")[:2] == ("True", "RollingOut")
    assert fake.condition("Ready")[0] == "True"


def test_what_served_serves_on_while_the_kubelet_tries_again_without_a_write() -> None:
    fake = rolling()
    fake.reconcile()
    writes = fake.writes
    for attempt in range(5):
        fake.hold_up("coder-prefill-2-0", "ImagePullBackOff" if attempt % 2 else "ErrImagePull", f"{BACK_OFF}{attempt}")
        fake.advance(10)
        fake.reconcile()
    assert fake.writes == writes
    assert [reason for reason, _ in fake.events].count("ImageNotPulled") == 1
    assert fake.pool.status.ready_replicas == 2
    assert {view.routable for view in fake.views()} == {True}


def test_a_corrected_spec_replaces_it_and_ends_the_complaint() -> None:
    fake = rolling()
    fake.reconcile()
    fake.change(engine={"type": "Simulated", "image": "registry/engine:8"})
    fake.run()
    assert {view.revision for view in fake.views()} == {fake.pool.status.revision}
    assert fake.pool.status.ready_replicas == 2
    assert fake.condition("Degraded")[:2] == ("False", "Healthy")
    assert {record.message for record in fake.pool.status.instances} == {None}


def test_an_image_that_arrives_at_last_goes_on_by_itself() -> None:
    fake = rolling()
    fake.reconcile()
    fake.hold_up("coder-prefill-2-0", "", "")
    fake.run()
    assert fake.pool.status.updated_replicas == 2
    assert fake.condition("Degraded")[:2] == ("False", "Healthy")


def test_what_served_a_moment_ago_is_not_thrown_away_while_its_replacement_cannot_start() -> None:
    fake = rolling()
    fake.falter("coder-prefill-0-0")
    fake.reconcile()
    fake.advance(50)
    fake.reconcile()
    assert sorted(fake.instances()) == ["coder-prefill-0", "coder-prefill-1", "coder-prefill-2"]
    assert {view.routable for view in fake.views()} == {True}
    fake.advance(11)
    fake.reconcile()
    assert "removing coder-prefill-0, which was not serving" in [message for _, message in fake.events]


def test_a_pod_that_starts_was_not_ready_before() -> None:
    def seen(turned: str) -> float | None:
        state = {"running": {"startedAt": "2026-01-01T00:00:05Z"}}
        ready = {"type": "Ready", "status": "False", "lastTransitionTime": turned}
        status = {"conditions": [ready], "containerStatuses": [{"name": "engine", "state": state}]}
        return pod_view({"metadata": {"name": "coder-prefill-0-0"}, "status": status}).unready_since

    assert seen("2026-01-01T00:00:05Z") is None
    assert seen("2026-01-01T00:00:09Z") == epoch("2026-01-01T00:00:09Z")


def test_a_pool_without_any_instance_that_starts_is_not_ready_for_that_reason() -> None:
    fake = world(make_pool(replicas=1))
    fake.reconcile()
    fake.advance(1)
    fake.reconcile()
    fake.advance(1)
    fake.hold_up("coder-prefill-0-0", "CreateContainerConfigError", 'secret "token" not found')
    fake.reconcile()
    status, reason, message = fake.condition("Ready")
    assert (status, reason) == ("False", "ContainerNotCreated")
    assert 'container engine cannot be created: secret "token" not found; make the object that it misses' in message


def test_the_next_start_of_a_crash_looping_instance_is_in_its_condition() -> None:
    fake = world(make_pool(replicas=1))
    fake.run()
    for _ in range(2):
        fake.fail("coder-prefill-0-0")
        fake.reconcile()
        waiting = fake.condition("Degraded")[2]
        for _ in range(12):
            fake.advance(1)
            fake.reconcile()
    assert "was restarted 2 times" in waiting
    assert "; next start at 20" in waiting
    assert "take the last change of the spec back" in waiting
    fake.advance(10)
    fake.reconcile()
    assert "next start" not in fake.condition("Degraded")[2]


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        (PULL, PULL),
        (BACK_OFF, PULL),
        (f"rpc error: code = NotFound desc = {PULL}", PULL),
        ('Back-off pulling image "registry/engine:9"', "ImagePullBackOff"),
        ("", "ImagePullBackOff"),
    ],
)
def test_the_words_of_the_last_attempt_are_found_in_those_of_the_back_off(said: str, cause: str) -> None:
    waiting = {"reason": "ImagePullBackOff", "message": said}
    found = obstacle({"containerStatuses": [{"name": "engine", "image": "i", "state": {"waiting": waiting}}]})
    assert found is not None
    assert (found.reason, found.cause) == (Reason.IMAGE_NOT_PULLED, cause)


@pytest.mark.parametrize("reason", ["ContainerCreating", "PodInitializing", ""])
def test_a_container_that_is_about_to_start_is_no_obstacle(reason: str) -> None:
    assert obstacle({"containerStatuses": [{"name": "engine", "state": {"waiting": {"reason": reason}}}]}) is None


def test_a_failed_init_container_says_why_with_the_end_of_its_log() -> None:
    ended = {"exitCode": 2, "reason": "Error", "message": "x" * 400 + "\nno such model\n"}
    text = failure({"initContainerStatuses": [{"name": "fetch", "state": {"terminated": ended}}]})
    assert text.startswith("container fetch exited with code 2 (Error): xxx")
    assert text.endswith("x no such model")
    assert len(text) < 360
