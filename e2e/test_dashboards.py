"""Dashboards, rules and targets on the Prometheus of the release: every panel shows data once agents are at work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import openai
import yaml

from .clients import client, stream
from .dashboards import Panel, dashboards
from .manifests import small_agent_pool
from .prometheus import Prometheus, prometheus
from .session import REPOSITORY
from .world import World

MAY_BE_EMPTY = {
    "cluster/Not Ready/A": "nothing but objects that are not Ready, which there may be none of",
    "decisions/Limits that changed a decision/A": "the small load of this test asks for nothing beyond the bounds",
    "pool/Conditions that are not True/A": "a healthy pool may have none",
    "tier/Age of what is evicted, and the tool gap to survive/A": "nothing is evicted from a tier that never fills",
}
"""Queries that return nothing on a healthy, lightly loaded cluster, and why. They must run without an error, too."""

PREFIX = "You are a careful engineer. Read the files first, then say what you would change. " * 60


async def test_every_panel_of_every_dashboard_shows_data_under_load(world: World, namespace: str) -> None:
    world.apply(small_agent_pool(namespace, mode="DryRun", budget={"maxCostPerHour": "100"}))
    await world.ready(namespace, "agentpool", "coder")
    labels = "app.kubernetes.io/component=monitoring,grafana_dashboard"
    installed = dashboards(world.get("configmaps", "-n", world.release.namespace, "-l", labels)["items"])
    assert {found.name for found in installed} == {"agentpool", "cluster", "decisions", "pool", "tier"}
    wanted = {"namespace": namespace, "agent_pool": "coder", "pool": "coder-primary", "tier": "coder-cold"}

    with prometheus(world) as server:
        async with _load(world.base_url(namespace, "coder")):
            await world.until(lambda: _decided(server, namespace), "the first decision is scraped")
            panels = [panel for found in installed for panel in found.panels(found.variables(server, wanted))]
            empty = list(panels)

            async def filled() -> bool:
                empty[:] = [panel for panel in empty if not await asyncio.to_thread(server.query, panel.expression)]
                return not _unexpected(empty)

            try:
                await world.until(filled, "every panel shows data")
            except TimeoutError as error:
                raise AssertionError(f"no data: {[vars(panel) for panel in _unexpected(empty)]}") from error
    assert {panel.panel for panel in panels} >= MAY_BE_EMPTY.keys()


async def test_all_rules_are_loaded_and_healthy_and_all_targets_are_up(world: World, namespace: str) -> None:
    world.apply(small_agent_pool(namespace))
    await world.ready(namespace, "agentpool", "coder")
    shipped = yaml.safe_load((REPOSITORY / "charts" / "retinue" / "files" / "rules.yaml").read_text())["groups"]
    names = {group["name"]: [rule.get("alert") or rule["record"] for rule in group["rules"]] for group in shipped}
    system = {name for component in ("operator", "gateway", "emulator") for name in world.system_pods(component)}
    own = set(world.pods(namespace))
    assert len(own) == 4

    with prometheus(world) as server:

        async def healthy() -> bool:
            groups = server.api("rules")["groups"]
            assert {g["name"]: [rule["name"] for rule in g["rules"]] for g in groups} == names
            states = {rule["name"]: (rule["health"], rule.get("lastError")) for g in groups for rule in g["rules"]}
            assert {name: state for name, state in states.items() if state[0] == "err"} == {}
            return all(health == "ok" for health, _ in states.values())

        async def up() -> bool:
            found = {
                target["labels"].get("pod"): target["health"]
                for target in server.api("targets", state="active")["activeTargets"]
                if target["labels"].get("namespace") in (world.release.namespace, namespace)
            }
            return found == dict.fromkeys(system | own, "up")

        await world.until(healthy, "every rule was evaluated")
        await world.until(up, "every pod of the product and of the pools is scraped")


def _unexpected(empty: list[Panel]) -> list[Panel]:
    return [panel for panel in empty if panel.panel not in MAY_BE_EMPTY]


async def _decided(server: Prometheus, namespace: str) -> bool:
    return bool(server.query(f'retinue_operator_decisions_total{{namespace="{namespace}"}}'))


@asynccontextmanager
async def _load(base_url: str) -> AsyncIterator[None]:
    """A few sessions of both roles that go on until the context ends; any failed answer fails the test."""

    async def converse(agents: openai.AsyncOpenAI, session: str, model: str) -> None:
        for turn in range(1, 1_000_000):
            # A conversation that grows, and starts again before it is longer than the context window.
            text = PREFIX + f"{session} " * (100 * (turn % 40))
            answer = await stream(agents, session, tokens=20, text=text, model=model)
            assert answer.error is None, f"{session}: {answer.error}"

    async with client(base_url) as agents:
        sessions = {"p0": "primary", "p1": "primary", "e0": "explorer"}
        running = [asyncio.create_task(converse(agents, name, model)) for name, model in sessions.items()]
        try:
            yield
        finally:
            failed = [task.exception() for task in running if task.done()]
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
    assert failed == []
