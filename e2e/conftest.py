"""Fixtures of the e2e suite: one cluster with the product on it, a namespace per test, artifacts of what failed.

`python e2e` (make e2e) makes the cluster and says here where it is, in RETINUE_E2E_* variables. Tests that break what
others need (the operator, nodes, Prometheus) carry the mark `alone` and run after the others, one at a time.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Generator, Iterator

import pytest

from retinue_emulator.loopback import LoopbackError

from .session import Session, open_session
from .world import World

_WORLD = pytest.StashKey[World]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks every test of this folder, so that no mark is unknown elsewhere."""
    for item in items:
        item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def session() -> Session:
    """What `python e2e` has made."""
    return open_session(os.environ)


@pytest.fixture(scope="session")
def _world(session: Session) -> Iterator[World]:
    with session.world() as world:
        yield world


@pytest.fixture
def world(request: pytest.FixtureRequest, _world: World) -> World:
    """The cluster under test."""
    request.node.stash[_WORLD] = _world
    return _world


@pytest.fixture
def namespace(request: pytest.FixtureRequest, world: World) -> Iterator[str]:
    """The name of a namespace of this test alone; deleted afterwards, not awaited."""
    stem = re.sub(r"[^a-z0-9]+", "-", request.node.name.removeprefix("test_").lower()).strip("-")[:30].strip("-")
    name = f"{stem}-{secrets.token_hex(3)}"
    world.kubectl("create", "namespace", name)
    world.kubectl("wait", "--for=create", "--timeout=30s", f"--namespace={name}", "serviceaccount/default")
    yield name
    if request.node.stash.get(_FAILED, False):
        _keep(world, request.node.name, name)
    # Streams of a failed test may go on for minutes: nothing is drained any more.
    world.kubectl("delete", "namespace", name, "--wait=false")
    for pod in world.pods(name):
        world.kubectl("delete", "pod", pod, "-n", name, "--grace-period=5", "--wait=false", "--ignore-not-found")


_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remembers failures for the fixtures, and keeps what the system said."""
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
        if _WORLD in item.stash:
            _keep(item.stash[_WORLD], item.name, item.stash[_WORLD].release.namespace)
    return report


def _keep(world: World, test: str, namespace: str) -> None:
    """Writes objects, events, descriptions and logs of a namespace into the artifacts of a test."""
    folder = world.artifacts / re.sub(r"[^\w.-]+", "_", test) / namespace
    folder.mkdir(parents=True, exist_ok=True)
    kinds = "pods,services,agentpools,prefillpools,decodepools,kvcachetiers,resourceclaims"
    looks = {
        "objects.txt": ("get", kinds, "-o", "wide"),
        "objects.yaml": ("get", kinds, "-o", "yaml"),
        "events.txt": ("get", "events", "--sort-by=.lastTimestamp"),
        "described.txt": ("describe", kinds),
    }
    for name, arguments in looks.items():
        (folder / name).write_text(_said(world, *arguments, "-n", namespace))
    (folder / "nodes.txt").write_text(_said(world, "describe", "nodes"))
    listed = json.loads(_said(world, "get", "pods", "-n", namespace, "-o", "json") or "{}").get("items", [])
    for pod in (item["metadata"]["name"] for item in listed):
        for suffix, flag in (("", ()), (".previous", ("--previous",))):
            text = _said(world, "logs", pod, "-n", namespace, "--all-containers", "--tail=2000", *flag)
            if text:
                (folder / f"{pod}{suffix}.log").write_text(text)


def _said(world: World, *arguments: str) -> str:
    try:
        return world.kubectl(*arguments, timeout=30)
    except LoopbackError:
        return ""
