"""Whatever is written into the five kinds: the operator goes on, comes to rest, and leaves what it cannot read."""

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from retinue.api import KINDS
from retinue.api.crd import root_node
from retinue.api.schema import violations
from retinue.api.types import Model
from retinue.catalog.load import models, presets
from retinue.plan import Manifest
from retinue_operator.controllers.observe import parse

from ..nonsense import NONSENSE, spoiled
from ..simulation.cluster import NAMESPACE
from ..simulation.schedules import settled
from ..simulation.world import SimulatedWorld
from .objects import Objects, Refusal
from .strategies import blended, defaulted, fitting
from .test_bad_for_operator import GOOD

CLASSES = ["fast", "small", "storage", "lost"]
KNOWN: dict[str, list[Any]] = {
    "nodeClasses": [["fast"], ["small", "fast"], ["lost"]],
    "nodeClass": CLASSES,
    "kvCacheTiers": [[], ["tier"], ["tier", "other"]],
    "nextTier": ["tier", "other"],
    "model": [{"name": "gpt-oss-20b"}, *({"name": name} for name in sorted(models()))],
    "preset": sorted(presets()),
    "engine": [{"type": "Simulated"}],
    "replicas": [1, 2],
    "parallelism": [{}, {"tensor": 2}, {"tensor": 8}],
    "nodeSelector": [{"gpu": "fast"}, {"gpu": "small"}],
}
KIND_NAMES = [kind.kind_info.kind for kind in KINDS]
_ROOTS = {kind.kind_info.kind: root_node(kind) for kind in KINDS}
_SPECS = {name: fitting(root.properties["spec"], KNOWN) for name, root in _ROOTS.items()}
_STATUSES = {name: fitting(root.properties["status"], KNOWN) for name, root in _ROOTS.items()}


def relaxed(examples: int) -> settings:
    return settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))


def manifest(kind: str, name: str, spec: Any, status: Any = None) -> Manifest:
    metadata = {"name": name} if kind == "NodeClass" else {"name": name, "namespace": NAMESPACE}
    made = {"apiVersion": "retinue.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}
    made["spec"] = defaulted(_ROOTS[kind].properties["spec"], spec)
    return made if status is None else {**made, "status": status}


@st.composite
def objects(draw: st.DrawFn) -> Manifest:
    """An object of any kind that may well be taken, perhaps with a status of somebody else."""
    kind = draw(st.sampled_from(KIND_NAMES))
    name = draw(st.sampled_from(["tier", "other", "coder", "coder-primary", "fast", "x"]))
    share = draw(st.sampled_from((0.03, 0.1, 0.3)))
    spec = blended(GOOD[kind], draw(_SPECS[kind]), share, draw(st.randoms(use_true_random=False)))
    return manifest(kind, name, spec, draw(st.one_of(st.none(), _STATUSES[kind])))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind_info.kind)
def test_what_the_schema_takes_the_model_takes(kind: type[Model]) -> None:
    name = kind.kind_info.kind  # type: ignore[attr-defined]

    @relaxed(40)
    @given(_SPECS[name], st.one_of(st.none(), _STATUSES[name]))
    def check(spec: Any, status: Any) -> None:
        made = manifest(name, "x", spec, status)
        assert list(violations(_ROOTS[name].properties["spec"], made["spec"], "spec")) == []
        assert parse(kind, made) is not None

    check()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind_info.kind)
def test_what_cannot_be_read_is_nothing_and_never_a_crash(kind: type[Model]) -> None:
    name = kind.kind_info.kind  # type: ignore[attr-defined]

    @relaxed(60)
    @given(st.one_of(NONSENSE, spoiled(_SPECS[name])), st.one_of(NONSENSE, spoiled(_STATUSES[name])))
    def check(spec: Any, status: Any) -> None:
        made = {**manifest(name, "x", {}), "spec": spec, "status": status}
        try:
            kind.model_validate(made)
        except ValidationError:
            assert parse(kind, made) is None
        else:
            assert parse(kind, made) is not None

    check()


@pytest.mark.component
def test_the_operator_comes_to_rest_whatever_objects_the_api_server_takes(shared_objects: Objects) -> None:
    kinds: set[str] = set()

    @relaxed(60)
    @given(st.integers(0, 1_000_000), st.lists(objects(), min_size=1, max_size=6))
    def check(seed: int, found: list[Manifest]) -> None:
        taken = [made for made in found if _taken(made, shared_objects)]
        kinds.update(made["kind"] for made in taken)
        world = SimulatedWorld(seed, like=settled())
        for made in taken:
            live = world.api.find(made["kind"], made["metadata"].get("namespace", ""), made["metadata"]["name"])
            world.api.write({**(live or {}), **made})
        asyncio.run(world.calm_down())

    check()
    assert kinds == set(KIND_NAMES)


def _taken(made: Manifest, objects: Objects) -> bool:
    """Whether the real API server, with all its CEL rules, takes the object."""
    metadata = {"name": made["metadata"]["name"]}
    try:
        objects.create({**made, "metadata": metadata}, dry_run=True)
    except Refusal:
        return False
    return True
