"""Every object that the core builds, as a YAML file that a person can read; a change of it shows in the diff.

Images without a name of their own are those of retinue/emulator:VERSION here, so that no file tells a version.

After an intended change: RETINUE_UPDATE_GOLDEN=1 python -m pytest tests/unit/test_builders_golden.py
"""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from retinue.agentpool.build import build_decode_pool, build_prefill_pool, build_replicas, build_tier
from retinue.api import AgentPool, KVCacheTier, labels
from retinue.engines import simulated
from retinue.engines.launch import unsupported
from retinue.engines.simulated import ENGINE_COMMAND, TIER_COMMAND
from retinue.kvcachetier.build import build_server
from retinue.kvcachetier.build import build_service as build_tier_service
from retinue.nodeclass.resolve import ResolvedClass
from retinue.placement.pack import Placement
from retinue.plan import Manifest
from retinue.pool.build import build_claim_template, build_marks, build_pod, build_service
from retinue.pool.shape import InstanceShape, instance_shape
from retinue.pool.snapshot import PoolSnapshot, pod_view
from retinue_emulator.engine.config import EngineRole, TierAddress, parse_engine, parse_tier

from .fakeworld import CLIQUE, GPU, MODEL, TOPOLOGY_DOMAIN, gpu_class, make_pool, world

GOLDEN = Path(__file__).parent / "golden"
UPDATE = "RETINUE_UPDATE_GOLDEN"
REVISION = "0123456789"
CLASS = gpu_class(
    "fast",
    tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    rdmaResources={"rdma/ib": 1},
    device={"memory": "96Gi", "memoryBandwidthGBps": 4000, "teraflops": {"fp8": 2500}},
)
PLACED = Placement("fast", "rack-7", CLIQUE)
PLACED_BY_LATER_KEY = Placement("fast", "d0", TOPOLOGY_DOMAIN, (CLIQUE,))
TEMPLATE = {
    "metadata": {"labels": {"team": "agents"}, "annotations": {"example.com/note": "kept"}},
    "spec": {
        "priorityClassName": "inference",
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [
                        {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]},
                        {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["b"]}]},
                    ]
                }
            }
        },
        "containers": [
            {
                "name": "engine",
                "env": [{"name": "HF_HOME", "value": "/models"}],
                "volumeMounts": [{"name": "m", "mountPath": "/models"}],
            },
            {"name": "sidecar", "image": "example.com/sidecar:1"},
        ],
        "volumes": [{"name": "m", "emptyDir": {}}],
    },
}


def tier(name: str, **spec: Any) -> KVCacheTier:
    metadata = {
        "name": name,
        "namespace": "agents",
        "uid": f"uid-{name}",
        "labels": {labels.AGENT_POOL: "coder"},
    }
    return KVCacheTier.model_validate({"metadata": metadata, "spec": spec})


TIERS = {
    "warm": tier("warm", medium="HostMemory", capacityPerMember="512Gi"),
    "cold": tier(
        "cold",
        medium="ContextStorage",
        backend="Simulated",
        capacityPerMember="1Ti",
        nodeClass="fast",
        podTemplate={"spec": {"priorityClassName": "storage"}},
    ),
}


CLASS_BY_DRA = replace(CLASS, resource=None, device_class="gpu.nvidia.com")


def snapshot(kind: str = "prefill", class_: ResolvedClass = CLASS, **spec: Any) -> tuple[PoolSnapshot, InstanceShape]:
    """A pool's snapshot and the shape of its instances on a class of these tests."""
    pool = make_pool(kind, name="coder-primary", **spec)
    metadata = pool.metadata.model_copy(update={"labels": {labels.AGENT_POOL: "coder", labels.ROLE: "primary"}})
    pool = pool.model_copy(update={"metadata": metadata})
    seen = world(pool, classes={"fast": class_}, tiers=TIERS).snapshot()
    used = {name: TIERS[name] for name in pool.spec.kv_cache_tiers}
    shape = instance_shape(pool.spec.model, pool.spec.parallelism, class_, used)
    assert isinstance(shape, InstanceShape)
    return seen, shape


def pod(kind: str, rank: int, placement: Placement | None, class_: ResolvedClass = CLASS, **spec: Any) -> Manifest:
    seen, shape = snapshot(kind, class_, **spec)
    return build_pod(seen, shape, f"coder-primary-{seen.kind.value}-0", rank, REVISION, placement)


def claim_template(kind: str, **spec: Any) -> Manifest:
    template = build_claim_template(*snapshot(kind, CLASS_BY_DRA, **spec))
    assert template is not None
    return template


TIERED: dict[str, Any] = {"kvCacheTiers": ["warm", "cold"]}
TWO_PODS: dict[str, Any] = {"parallelism": {"tensor": 8}}
AGGREGATED: dict[str, Any] = {"serves": "PrefillAndDecode"}
AGENT_POOL = AgentPool.model_validate(
    {
        "metadata": {"name": "coder", "namespace": "agents", "uid": "uid-coder"},
        "spec": {
            "roles": [
                {
                    "name": "primary",
                    "type": "Primary",
                    "model": {"name": MODEL, "precision": "NVFP4", "contextWindow": 262144},
                    "engine": {"type": "Simulated", "args": ["--max-num-seqs=64"]},
                    "prefill": {
                        "nodeClasses": ["gb300", "b200"],
                        "parallelism": {"tensor": 4},
                        "replicas": {"min": 1, "max": 8},
                        "topology": {"pack": "nvlinkDomain", "spread": "rack"},
                    },
                    "decode": {
                        "nodeClasses": ["gb300"],
                        "parallelism": {"data": 16, "expert": 16},
                        "replicas": {"min": 1, "max": 8},
                        "drain": {"timeout": "5m"},
                    },
                    "kvCacheTiers": ["warm", "shared"],
                }
            ],
            "tiers": [
                {
                    "name": "shared",
                    "replicas": {"min": 1, "max": 6},
                    "spec": {
                        "medium": "ContextStorage",
                        "backend": "Simulated",
                        "capacityPerMember": "2Ti",
                        "nodeClass": "storage",
                        "nextTier": "archive",
                    },
                }
            ],
        },
    }
)


def _prefill_pool() -> Manifest:
    role = AGENT_POOL.spec.roles[0]
    assert role.prefill is not None
    return build_prefill_pool(AGENT_POOL, role, role.prefill)


def _decode_pool() -> Manifest:
    role = AGENT_POOL.spec.roles[0]
    assert role.decode is not None
    return build_decode_pool(AGENT_POOL, role, role.decode)


MARKED = pod_view(pod("prefill", 0, PLACED))
BUILT: dict[str, Callable[[], Manifest]] = {
    "pod-prefill-gated": lambda: pod("prefill", 0, None, **TIERED),
    "pod-prefill-placed": lambda: pod("prefill", 0, PLACED, **TIERED),
    "pod-prefill-two-pods-second": lambda: pod("prefill", 1, PLACED_BY_LATER_KEY, **TIERED, **TWO_PODS),
    "pod-prefill-with-template": lambda: pod("prefill", 0, PLACED, podTemplate=TEMPLATE),
    "pod-decode-placed": lambda: pod("decode", 0, PLACED),
    "pod-decode-two-pods-gated": lambda: pod("decode", 0, None, **TWO_PODS),
    "pod-decode-with-claim": lambda: pod("decode", 0, PLACED, CLASS_BY_DRA, **TIERED, **TWO_PODS),
    "claimtemplate-decode": lambda: claim_template("decode", **TWO_PODS),
    "pod-aggregated-anywhere": lambda: pod("decode", 0, Placement("fast", None, None), **AGGREGATED),
    "pod-drain-marks": lambda: build_marks(snapshot()[0], MARKED, "2026-01-01T00:00:00Z"),
    "pod-drain-taken-back": lambda: build_marks(snapshot()[0], MARKED, None),
    "service-prefill": lambda: build_service(snapshot()[0]),
    "service-decode": lambda: build_service(snapshot("decode")[0]),
    "service-tier": lambda: build_tier_service(TIERS["cold"]),
    "pod-tier-server": lambda: build_server(TIERS["cold"], CLASS, 0),
    "agentpool-prefillpool": _prefill_pool,
    "agentpool-decodepool": _decode_pool,
    "agentpool-tier": lambda: build_tier(AGENT_POOL, AGENT_POOL.spec.tiers[0]),
    "agentpool-replicas": lambda: build_replicas("PrefillPool", "agents", "coder-primary", 3),
}


@pytest.fixture(autouse=True)
def _no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulated, "DEFAULT_IMAGE", "retinue/emulator:VERSION")


@pytest.mark.parametrize("name", sorted(BUILT))
def test_the_object_is_as_in_its_golden_file(name: str) -> None:
    path = GOLDEN / f"{name}.yaml"
    built = BUILT[name]()
    text = yaml.safe_dump(built, sort_keys=False, width=160)
    if os.environ.get(UPDATE):
        GOLDEN.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.exists(), f"no golden file: run with {UPDATE}=1 and look at {path.name}"
    assert text == path.read_text(encoding="utf-8"), f"if this change is intended, run with {UPDATE}=1 and look at it"
    assert yaml.safe_load(text) == built


def test_there_is_no_golden_file_without_a_builder() -> None:
    assert {path.stem for path in GOLDEN.glob("*.yaml")} == set(BUILT)


def test_a_gated_pod_differs_from_its_placed_one_in_gate_affinity_and_domain_only() -> None:
    gated, placed = pod("prefill", 0, None, **TIERED), pod("prefill", 0, PLACED, **TIERED)
    assert gated["spec"].pop("schedulingGates") == [{"name": labels.PLACEMENT_GATE}]
    placed["spec"].pop("affinity")
    assert placed["metadata"]["annotations"].pop(labels.DOMAIN) == "rack-7"
    assert gated == placed


def test_the_domain_is_added_to_every_alternative_of_the_users_node_affinity() -> None:
    spec = pod("prefill", 0, PLACED, podTemplate=TEMPLATE)["spec"]
    required = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    for term, zone in zip(required["nodeSelectorTerms"], ("a", "b"), strict=True):
        assert term["matchExpressions"] == [
            {"key": "zone", "operator": "In", "values": [zone]},
            {"key": CLIQUE, "operator": "In", "values": ["rack-7"]},
        ]


def test_a_template_with_a_gate_of_its_own_keeps_it_and_reads_as_released_without_ours() -> None:
    own = {"spec": {"schedulingGates": [{"name": "example.com/quota"}]}}
    gated, placed = pod("prefill", 0, None, podTemplate=own), pod("prefill", 0, PLACED, podTemplate=own)
    assert gated["spec"]["schedulingGates"] == [{"name": "example.com/quota"}, {"name": labels.PLACEMENT_GATE}]
    assert placed["spec"]["schedulingGates"] == [{"name": "example.com/quota"}]
    assert pod_view(gated).gated
    assert not pod_view(placed).gated


def test_devices_by_dra_change_nothing_of_a_pod_but_where_its_devices_come_from() -> None:
    plain, claiming = pod("decode", 0, PLACED, **TIERED), pod("decode", 0, PLACED, CLASS_BY_DRA, **TIERED)
    assert claiming["spec"].pop("resourceClaims") == [
        {"name": "devices", "resourceClaimTemplateName": claim_template("decode", **TIERED)["metadata"]["name"]}
    ]
    resources = claiming["spec"]["containers"][0]["resources"]
    assert resources.pop("claims") == [{"name": "devices"}]
    for amounts in (resources["requests"], resources["limits"]):
        amounts[GPU] = plain["spec"]["containers"][0]["resources"]["limits"][GPU]
    claiming["metadata"]["annotations"].pop(labels.TEMPLATE)
    plain["metadata"]["annotations"].pop(labels.TEMPLATE)
    assert claiming == plain


def test_a_users_template_may_claim_more_and_give_the_devices_to_a_sidecar_too() -> None:
    more = {
        "spec": {
            "resourceClaims": [{"name": "nics", "resourceClaimTemplateName": "two-nics"}],
            "containers": [
                {"name": "engine", "resources": {"claims": [{"name": "nics"}]}},
                {"name": "watcher", "image": "example.com/w:1", "resources": {"claims": [{"name": "devices"}]}},
            ],
        }
    }
    spec = pod("decode", 0, PLACED, CLASS_BY_DRA, podTemplate=more)["spec"]
    assert [claim["name"] for claim in spec["resourceClaims"]] == ["devices", "nics"]
    assert spec["containers"][0]["resources"]["claims"] == [{"name": "devices"}, {"name": "nics"}]
    assert spec["containers"][1]["resources"]["claims"] == [{"name": "devices"}]


def test_the_name_of_a_claim_template_follows_its_content_and_fits() -> None:
    def name(class_: ResolvedClass = CLASS_BY_DRA, **spec: Any) -> str:
        template = build_claim_template(*snapshot("decode", class_, **spec))
        assert template is not None
        return str(template["metadata"]["name"])

    assert name() == name()
    assert name() == name(drain={"timeout": "9m"}), "what is not claimed does not count"
    assert name() != name(**TWO_PODS), "another number of devices"
    assert name() != name(replace(CLASS_BY_DRA, device_class="other.example.com"))
    seen, shape = snapshot("prefill", replace(CLASS_BY_DRA, name="c" * 63))
    metadata = seen.pool.metadata.model_copy(update={"name": "p" * 40})
    longest = build_claim_template(replace(seen, pool=seen.pool.model_copy(update={"metadata": metadata})), shape)
    assert longest is not None
    assert len(longest["metadata"]["name"]) == 123
    assert build_claim_template(*snapshot("decode")) is None


def test_building_leaves_the_users_template_as_it_was() -> None:
    seen, shape = snapshot(podTemplate=TEMPLATE)
    before = seen.pool.to_wire()
    build_pod(seen, shape, "coder-primary-prefill-0", 0, REVISION, PLACED)
    build_pod(seen, shape, "coder-primary-prefill-0", 0, REVISION, None)
    assert seen.pool.to_wire() == before


# --- what the emulator makes of the command lines


def _environment(container: Manifest) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}


ENGINES: list[tuple[str, str, int, dict[str, Any]]] = [
    ("prefill", "prefill", 0, TIERED),
    ("prefill", "prefill", 1, {**TWO_PODS, **TIERED}),
    ("decode", "decode", 0, {}),
    ("decode", "aggregated", 0, AGGREGATED),
    ("decode", "decode", 1, {"parallelism": {"data": 8, "expert": 8}, "kvTransfer": {"connector": "Mooncake"}}),
    ("prefill", "prefill", 0, {"model": {"name": MODEL, "precision": "NVFP4", "kvPrecision": "BF16"}}),
    ("prefill", "prefill", 0, {"engine": {"type": "Simulated", "args": ["--max-num-seqs=9"]}}),
]


@pytest.mark.parametrize(("kind", "role", "rank", "spec"), ENGINES)
def test_the_emulator_reads_back_what_the_pool_says(kind: str, role: str, rank: int, spec: dict[str, Any]) -> None:
    seen, shape = snapshot(kind, **spec)
    container = pod(kind, rank, PLACED, **spec)["spec"]["containers"][0]
    assert tuple(container["command"]) == ENGINE_COMMAND
    config = parse_engine(container["args"], _environment(container))
    wanted = seen.pool.spec
    assert config.role == EngineRole(role)
    assert config.served_model_name == wanted.model.name
    assert config.context_window == wanted.model.context_window
    assert config.kv_connector == wanted.kv_transfer.connector.value
    assert config.port == labels.HTTP_PORT
    assert (config.instance, config.rank, config.world_size) == (f"coder-primary-{kind}-0", rank, shape.pods)
    assert config.host_cache_bytes == shape.host_cache_bytes
    assert config.kv_blocks == shape.kv_capacity_tokens // 64, "operator and engine size the KV cache alike"
    assert config.shape == shape.engine
    assert config.max_num_seqs == (9 if wanted.engine.args else 256)
    servers = [TierAddress("cold", "http://cold-tier.agents.svc:8000")] if wanted.kv_cache_tiers else []
    assert list(config.tiers) == servers


def test_the_emulator_reads_back_what_the_tier_says() -> None:
    container = build_server(TIERS["cold"], CLASS, 0)["spec"]["containers"][0]
    assert tuple(container["command"]) == TIER_COMMAND
    config = parse_tier(container["args"])
    assert (config.capacity_bytes, config.port) == (2**40, labels.HTTP_PORT)


@pytest.mark.parametrize("type_", ["VLLM", "SGLang", "TensorRTLLM"])
def test_an_engine_that_cannot_be_launched_is_named_with_those_that_can(type_: str) -> None:
    reason = unsupported(make_pool(engine={"type": type_}).spec.engine)
    assert reason == (
        f"spec.engine.type: {type_} cannot be launched by this version; it launches Simulated. Set type to one of these"
    )
    assert unsupported(make_pool().spec.engine) is None
