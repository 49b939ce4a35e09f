"""SIGKILL of real operator processes at moments that a seed chooses, while a user edits and streams run.

The API server, the scheduler and the garbage collector are real, and so are the engines: nodes and kubelets are the
emulated node plugin, which is quick enough at its speed and serves the streams that must not be cut.
RETINUE_KILLS and RETINUE_SEED choose how many and which; `make soak` kills a thousand.
"""

import os
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from retinue_emulator.loopback import ControlPlane
from retinue_operator.access import Access
from retinue_operator.client import KubeClient

from .emulatednodes import emulated_nodes
from .faultyserver import faulty
from .killscenario import INVENTORY, SPEED, STEADY, User, all_gone, converged, node_classes
from .lives import deaths, lives
from .outsideview import OutsideView

pytestmark = pytest.mark.component

KILLS = int(os.environ.get("RETINUE_KILLS", "25"))
SEED = int(os.environ.get("RETINUE_SEED", "20261125"))
CALM_EVERY = 25
AT_ONCE = 4


@pytest.fixture
async def nodes(cluster: ControlPlane, tmp_path: Path) -> AsyncIterator[None]:
    """Emulated nodes and their classes, with nothing of other tests on them."""
    if not isinstance(cluster, ControlPlane):
        pytest.skip("needs an API server whose key is ours to use")
    async with emulated_nodes(cluster, tmp_path, INVENTORY, SPEED, node_classes()):
        yield


@pytest.mark.usefixtures("nodes")
async def test_promises_hold_whenever_the_operator_is_killed(
    cluster: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    print(f"{KILLS} kills with RETINUE_SEED={SEED}; the operator's log is {tmp_path / 'operator.log'}")
    chance = random.Random(SEED)
    async with (
        faulty(cluster, SEED) as proxy,
        await KubeClient.connect(Access(cluster.kubeconfig)) as client,
        OutsideView(cluster, namespace, frozenset({STEADY})) as view,
        lives(proxy, arguments(cluster, namespace, proxy.url), tmp_path / "operator.log") as life,
    ):
        user = User(client, namespace, chance, view)
        await user.furnish()
        await life.start()
        print(f"furnished in {await converged(client, namespace):.1f} s")
        view.hands_off()
        view.drive(random.Random(SEED + 1), AT_ONCE)
        assert await life.end() == 0
        began = time.monotonic()
        for number in range(1, KILLS + 1):
            if chance.random() < 0.8:
                await user.act()
            await life.live_and_die(deaths(chance))
            assert not view.broken, (number, user.done[-5:], view.broken)
            if number % CALM_EVERY == 0 or number == KILLS:
                await life.start()
                took = await converged(client, namespace)
                assert life.alive()
                assert not view.broken, (number, user.done[-5:], view.broken)
                print(
                    f"{number} kills in {time.monotonic() - began:.0f} s ({dict(life.died)}), {len(user.done)} edits, "
                    f"{view.streams} streams, none cut; all as specified {took:.1f} s after the last"
                )
                if number < KILLS:
                    assert await life.end() == 0
        assert view.streams > 0
        view.everything_goes()
        await all_gone(client, namespace)
        assert await life.end() == 0
    assert not view.broken, view.broken


def arguments(cluster: ControlPlane, namespace: str, server: str) -> list[str]:
    """Of each life. All have one identity: each begins when the one before is dead, and need not wait for its lease."""
    kubeconfig = cluster.service_account_kubeconfig("retinue-system", "retinue-operator", server=server)
    return [
        "run",
        f"--kubeconfig={kubeconfig}",
        f"--namespaces={namespace}",
        "--identity=mortal",
        "--http-host=127.0.0.1",
        "--http-port=0",
        "--log-format=text",
    ]
