"""Child processes that never outlive this one: own session, stopped in order, killed by the kernel if we die."""

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from .errors import LoopbackError

_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 0.02
# Loaded before any fork: the child may not import or allocate much between fork and exec.
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def require_linux() -> None:
    """Raises LoopbackError elsewhere: death signals and the whole of 127.0.0.0/8 are things only Linux has."""
    if sys.platform != "linux":
        raise LoopbackError(
            f"the loopback control plane runs on Linux only, this is {sys.platform}",
            "use a Linux machine or container, or set RETINUE_KUBECONFIG to an existing cluster",
        )


class ChildProcess:
    """A running child with its output in a log file.

    Create it with `spawn`. The child is in a session of its own, so Ctrl-C in a terminal reaches only the parent,
    which then stops its children in the order it wants.
    """

    def __init__(self, name: str, popen: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.log = log
        self._popen = popen

    @classmethod
    def spawn(
        cls,
        name: str,
        argv: Sequence[str],
        *,
        log: Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> "ChildProcess":
        """Starts `argv` and appends both of its outputs to `log`.

        Must run in the main thread: the kernel ties the death signal to the *thread* that forked, so a child of a
        worker thread would be killed as soon as that thread ends. Raises LoopbackError otherwise, or when the program
        cannot run.
        """
        require_linux()
        if threading.current_thread() is not threading.main_thread():
            raise LoopbackError(
                f"{name} was started from thread {threading.current_thread().name}",
                "start it from the main thread, because it dies with the thread that starts it",
            )
        parent = os.getpid()

        def die_with_parent() -> None:
            if _libc is None or _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
                os._exit(126)
            # The parent may have died before the death signal was armed; then nobody would ever send it.
            if os.getppid() != parent:
                os._exit(126)

        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            with log.open("ab") as output:
                popen = subprocess.Popen(
                    list(argv),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=cwd,
                    env=None if env is None else dict(env),
                    start_new_session=True,
                    preexec_fn=die_with_parent,
                )
        except OSError as error:
            raise LoopbackError(f"{name} cannot be started ({error})", f"check the file {argv[0]}") from error
        return cls(name, popen, log)

    @property
    def pid(self) -> int:
        return self._popen.pid

    def exit_code(self) -> int | None:
        """None while the child runs; afterwards its exit status, negative for the signal that ended it."""
        return self._popen.poll()

    def send(self, sig: signal.Signals) -> None:
        """Sends a signal to the child and everything it started; does nothing when the child has ended."""
        if self.exit_code() is None:
            os.killpg(self.pid, sig)

    async def wait(self, timeout: float | None = None) -> int:
        """The exit status once the child has ended. Raises TimeoutError after `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.exit_code()) is None:
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"{self.name} still runs after {timeout} s")
            await asyncio.sleep(_POLL_SECONDS)
        return code

    async def stop(self, grace: float) -> int:
        """Ends the child: SIGTERM, then SIGKILL after `grace` seconds or when this call is cancelled."""
        self.send(signal.SIGTERM)
        try:
            return await self.wait(grace)
        except TimeoutError:
            self.send(signal.SIGKILL)
            return await self.wait()
        except BaseException:
            self.send(signal.SIGKILL)
            raise

    def log_tail(self, lines: int = 10, limit: int = 65536) -> str:
        """The last lines of the child's output, at most `limit` bytes of it."""
        try:
            with self.log.open("rb") as output:
                output.seek(max(0, output.seek(0, os.SEEK_END) - limit))
                text = output.read().decode(errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-lines:])
