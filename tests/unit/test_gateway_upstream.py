"""The gateway's connections to engines."""

import asyncio
import socket

import pytest
from aiohttp import web

from retinue_gateway.upstream import open_session


@pytest.mark.skipif(not hasattr(socket, "TCP_KEEPIDLE"), reason="Linux names for the options")
async def test_a_node_that_vanished_without_a_word_is_noticed_within_half_a_minute() -> None:
    looked = asyncio.Event()

    async def hello(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await looked.wait()
        return response

    app = web.Application()
    app.router.add_get("/", hello)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    try:
        async with open_session(5.0, 900.0) as session, session.get(f"http://127.0.0.1:{port}/") as response:
            assert response.connection is not None
            assert response.connection.transport is not None
            sock = response.connection.transport.get_extra_info("socket")
            tcp = {name: sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in _OPTIONS}
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            looked.set()
    finally:
        await runner.cleanup()
    assert tcp["TCP_KEEPIDLE"] + tcp["TCP_KEEPINTVL"] * tcp["TCP_KEEPCNT"] <= 30
    assert tcp["TCP_USER_TIMEOUT"] <= 30_000


_OPTIONS = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
