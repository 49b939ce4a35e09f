"""The operator as a process: logging, signals, and an exit code for each way it can end."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

from retinue_operator import logs
from retinue_operator.controller import Controller
from retinue_operator.preflight import Exit, StartError
from retinue_operator.runtime import Runtime
from retinue_operator.settings import Settings

MakeControllers = Callable[[Settings, AsyncExitStack], Sequence[Controller]]
"""Makes the controllers; what has to be closed when the operator has stopped goes onto the stack."""


def serve(settings: Settings, make_controllers: MakeControllers, wall: Callable[[], float] = time.time) -> Exit:
    """Runs the operator until SIGTERM or SIGINT, the first one gracefully, a second one at once.

    What prevents the start is one line on standard error. wall: the machine's clock, for tests of wrong ones.
    """
    logs.configure(settings.log_format, settings.log_level)
    try:
        return asyncio.run(_run(settings, make_controllers, wall))
    except StartError as error:
        print(f"retinue-operator: {error}", file=sys.stderr)
        return error.code


async def _run(settings: Settings, make_controllers: MakeControllers, wall: Callable[[], float]) -> Exit:
    async with AsyncExitStack() as stack:
        runtime = Runtime(settings, make_controllers(settings, stack), wall)
        asked = False

        def on_signal() -> None:
            nonlocal asked
            if asked:
                os._exit(Exit.FAILED)
            asked = True
            runtime.stop()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)
        return await runtime.run()
