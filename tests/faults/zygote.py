"""A program: has everything imported that the operator needs, and makes one operator process after another by forking.

Starting Python and importing takes a second or two of a core; a life that ends by SIGKILL after a few requests would
spend most of its time on that. Each life is a process of its own all the same, with its own sockets and memory.

It reads one JSON object a line: {"argv": arguments of retinue-operator, "log": file, "skew": seconds}, and answers
{"pid": number}; later, of each that has ended, {"ended": number, "code": exit code or minus the signal}.
"""

import ctypes
import functools
import json
import os
import select
import signal
import sys
import time
from typing import Any

from retinue_operator import cli, controllers, process, source

_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 0.02
_libc = ctypes.CDLL(None)
_IMPORTED = (controllers, source)


def main() -> None:
    """Serves until its input ends."""
    pending = b""
    while True:
        readable, _, _ = select.select([sys.stdin], [], [], _POLL_SECONDS)
        if readable:
            read = os.read(sys.stdin.fileno(), 65536)
            if not read:
                return
            *lines, pending = (pending + read).split(b"\n")
            for line in lines:
                _tell(pid=_fork(json.loads(line)))
        _reap()


def _fork(life: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    # Whoever ends the test ends them all.
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    log = os.open(life["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, file in enumerate((nothing, log, log)):
        os.dup2(file, number)
    cli.serve = functools.partial(process.serve, wall=lambda: time.time() + life["skew"])
    code = 1
    try:
        cli.app(life["argv"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        # Nothing of the parent's is to be closed or flushed by the child.
        os._exit(code)


def _reap() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        _tell(ended=pid, code=os.waitstatus_to_exitcode(status))


def _tell(**told: int) -> None:
    os.write(1, json.dumps(told).encode() + b"\n")


if __name__ == "__main__":
    main()
