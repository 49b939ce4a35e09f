"""The node plugin's own port: where it listens, and that faults are taken on loopback only."""

from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import pytest

from retinue_emulator.nodeplugin.statusserver import StatusServer


@pytest.mark.parametrize(("host", "status"), [("127.0.0.1", 204), ("127.0.0.2", 204), ("0.0.0.0", 404)])
async def test_whoever_is_not_on_this_machine_cannot_break_nodes(host: str, status: int) -> None:
    faults: list[str | None] = []

    async def set_node_fault(_name: str, fault: str | None) -> None:
        faults.append(fault)

    plugin: Any = SimpleNamespace(failure=None, nodes={"a": None}, set_node_fault=set_node_fault)
    server = StatusServer(cast("Any", plugin), host, 0)
    await server.start()
    reached = "127.0.0.1" if host == "0.0.0.0" else host
    try:
        async with aiohttp.ClientSession(f"http://{reached}:{server.port}") as http:
            async with http.get("/healthz") as response:
                assert response.status == 200
            async with http.put("/faults/nodes/a", data="down") as response:
                assert response.status == status
    finally:
        await server.stop()
    assert faults == (["down"] if status == 204 else [])
