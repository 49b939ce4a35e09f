"""Runs the programs that clusters are made with; what goes wrong becomes one line and the tail of what was said."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from retinue_emulator.loopback import LoopbackError

_TAIL_LINES = 15


class CommandFailed(LoopbackError):
    """A program ended with an error; `output` is everything it wrote to standard error."""

    def __init__(self, argv: Sequence[str | Path], output: str, remedy: str) -> None:
        tail = "\n".join(f"    {line[:400]}" for line in output.strip().splitlines()[-_TAIL_LINES:])
        shown = " ".join(str(word) for word in argv[:6])
        super().__init__(f"{shown} failed", f"{remedy}\n{tail}" if tail else remedy)
        self.output = output


def run(
    argv: Sequence[str | Path],
    *,
    remedy: str,
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: str | None = None,
    show: bool = False,
    timeout: float | None = None,
) -> str:
    """Runs a program to its end and returns its standard output.

    environ: variables on top of this process'. show: its standard error goes to the terminal, because it takes long.
    Raises CommandFailed when it cannot be started, fails, or takes more than `timeout` seconds.
    """
    try:
        done = subprocess.run(
            [str(word) for word in argv],
            env={**os.environ, **(environ or {})},
            cwd=cwd,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            stdout=subprocess.PIPE,
            stderr=None if show else subprocess.PIPE,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as expired:
        raise CommandFailed(argv, f"no answer after {timeout} s", remedy) from expired
    except OSError as error:
        raise CommandFailed(argv, str(error), remedy) from error
    if done.returncode != 0:
        raise CommandFailed(argv, done.stderr or done.stdout or "", remedy)
    return done.stdout
