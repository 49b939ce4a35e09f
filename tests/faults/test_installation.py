"""What changes about an installation while the operator runs: its account's token, and CRDs of another version."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import yaml

from retinue_emulator.loopback import ControlPlane, eventually
from retinue_operator.controllers import all_controllers
from retinue_operator.preflight import Exit
from retinue_operator.runtime import Runtime
from retinue_operator.settings import Settings

from ..component.toy import Running, Toy, prepare, running, tier
from .faultyserver import CRDS

pytestmark = pytest.mark.component

LACKING = {
    "retinue.dev_decodepools.yaml": ("updatedReplicas", "selector"),
    "retinue.dev_nodeclasses.yaml": ("freeDevices",),
}


@pytest.fixture
async def own() -> AsyncIterator[ControlPlane]:
    """A control plane for tests that spoil it."""
    async with ControlPlane() as control_plane:
        await asyncio.to_thread(control_plane.kubectl, "create", "namespace", "agents")
        yield control_plane


async def install(cluster: ControlPlane, lacking: dict[str, tuple[str, ...]]) -> None:
    """The CRDs without these fields of their statuses."""
    crds = []
    for path in sorted(CRDS.glob("*.yaml")):
        crd: dict[str, Any] = yaml.safe_load(path.read_text())
        for version in crd["spec"]["versions"]:
            properties = version["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]
            for field in lacking.get(path.name, ()):
                del properties[field]
            if "selector" in lacking.get(path.name, ()):
                version["subresources"]["scale"].pop("labelSelectorPath", None)
        crds.append(crd)
    await asyncio.to_thread(cluster.apply, *crds)
    await asyncio.to_thread(cluster.kubectl, "wait", "--for=condition=Established", "--timeout=60s", "-f", str(CRDS))


async def test_a_token_that_is_revoked_and_replaced_is_read_again_by_client_and_watches(own: ControlPlane) -> None:
    await install(own, {})
    async with running(own, "agents", Toy()) as op:
        await op.apply(tier("agents"))
        await op.settled()
        # Tokens are bound to the account's uid: those of the old account end with it.
        account = ("serviceaccount/retinue-operator", "--namespace=retinue-system")
        await asyncio.to_thread(own.kubectl, "delete", *account)

        async def refused() -> bool:
            codes = [
                sample.labels["code"] for family in op.runtime.metrics.requests.collect() for sample in family.samples
            ]
            if "401" not in codes:
                await op.kubectl("annotate", "kvt/warm", f"n={len(codes)}", "--overwrite")
                await op.kubectl("label", "service/warm", "retinue.dev/tier=other", "--overwrite")
            return "401" in codes

        await eventually(refused, what="the old token is refused", timeout=90, interval=0.5)
        await asyncio.to_thread(prepare, own)
        await op.kubectl("scale", "kvt/warm", "--replicas=3")
        # Without a sweep (an hour): the watches have to come back as well.
        await eventually(lambda: has(op, 3), what="the tier has three pods", timeout=90)
        await op.kubectl("scale", "kvt/warm", "--replicas=1")
        await eventually(lambda: has(op, 1), what="the tier has one pod", timeout=60)


async def has(op: Running, count: int) -> bool:
    status = (await op.get("kvt", "warm"))["status"]
    return bool(status["replicas"] == count)


async def test_a_crd_that_lacks_fields_loses_those_and_nothing_else(own: ControlPlane) -> None:
    await install(own, LACKING)
    kubeconfig = await asyncio.to_thread(prepare, own)
    settings = Settings(
        kubeconfig=kubeconfig,
        namespaces=("agents",),
        http_host="127.0.0.1",
        http_port=0,
        leader_election=False,
        sweep_interval=2.0,
    )
    async with AsyncExitStack() as stack:
        runtime = Runtime(settings, all_controllers(settings, stack))
        task = asyncio.create_task(runtime.run())
        try:
            await asyncio.to_thread(own.apply, NODE_CLASS, POOL)

            async def written() -> dict[str, Any]:
                found = await asyncio.to_thread(own.get, "dp/small", "--namespace=agents")
                status: dict[str, Any] = found.get("status") or {}
                return status if status.get("observedGeneration") and status.get("instances") else {}

            status = await eventually(written, what="the rest of the status is written")
            assert not {"updatedReplicas", "selector"} & set(status)
            assert {condition["type"] for condition in status["conditions"]} >= {"Ready", "Valid"}
            pods = await asyncio.to_thread(own.get, "pods", "--namespace=agents")
            assert len(pods["items"]) == 1
            assert not task.done()
        finally:
            runtime.stop()
            assert await task == Exit.OK


NODE_CLASS = {
    "apiVersion": "retinue.dev/v1alpha1",
    "kind": "NodeClass",
    "metadata": {"name": "b200"},
    "spec": {"family": "GPU", "preset": "b200"},
}
POOL = {
    "apiVersion": "retinue.dev/v1alpha1",
    "kind": "DecodePool",
    "metadata": {"name": "small", "namespace": "agents"},
    "spec": {
        "serves": "PrefillAndDecode",
        "model": {"name": "gpt-oss-20b", "precision": "MXFP4", "kvPrecision": "FP8", "contextWindow": 131072},
        "engine": {"type": "Simulated"},
        "nodeClasses": ["b200"],
        "replicas": 1,
    },
}
