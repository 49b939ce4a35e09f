"""The gateway as a process before one given engine, without a cluster: what `bench.gateway` measures."""

import argparse
import asyncio
import os

from retinue_gateway.directory import AgentPoolView, Instance, RoleView, build_directory
from retinue_gateway.keys import PoolKey, Stage
from retinue_gateway.logs import configure_logs
from retinue_gateway.server import Gateway
from retinue_gateway.settings import GatewaySettings, LogFormat, LogLevel

POOL = PoolKey("bench", "coder")


async def serve(port: int, upstream: int) -> None:
    """Serves until the process is ended."""
    gateway = Gateway(GatewaySettings(host="127.0.0.1", port=port, shutdown_grace=1.0))
    role = RoleView("primary", "Primary", "model", None, False, None, "coder-primary")
    instance = Instance(
        uid="uid-0",
        name="coder-primary-decode-0",
        namespace="bench",
        pool="coder-primary",
        stage=Stage.DECODE,
        address=f"127.0.0.1:{upstream}",
        routable=True,
    )
    gateway.table.publish(build_directory([instance], [AgentPoolView(POOL, 1_700_000_000, (role,))]))
    gateway.table_changed()
    async with gateway.listening():
        await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream", type=int, required=True, help="port of the engine")
    parser.add_argument("--core", type=int, required=True, help="the one core to run on")
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.core})
    configure_logs(LogLevel.WARNING, LogFormat.JSON)
    asyncio.run(serve(options.port, options.upstream))


if __name__ == "__main__":
    main()
