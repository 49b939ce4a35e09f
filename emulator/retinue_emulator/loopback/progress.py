"""How a long build shows that it is alive: a live line on a terminal, a plain line every ten seconds elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Protocol

from rich.console import Console
from rich.markup import escape
from rich.status import Status

_PLAIN_INTERVAL_SECONDS = 10.0


class Reporter(Protocol):
    """Receives the progress of one step at a time: `begin`, any number of `update`, `end`."""

    def begin(self, step: str) -> None:
        """A step has started, for example `building etcd (1 of 7)`."""

    def update(self, detail: str) -> None:
        """The step goes on; `detail` is what it does just now. Called several times a second."""

    def end(self) -> None:
        """The step has succeeded."""


class PlainReporter:
    """Whole lines with elapsed time, for logs and CI."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._step = ""
        self._began = self._printed = 0.0

    def begin(self, step: str) -> None:
        self._step = step
        self._began = self._printed = time.monotonic()
        self._print(step)

    def update(self, detail: str) -> None:
        now = time.monotonic()
        if now - self._printed >= _PLAIN_INTERVAL_SECONDS:
            self._printed = now
            self._print(f"{self._step}: {now - self._began:.0f} s, {detail}" if detail else self._step)

    def end(self) -> None:
        self._print(f"{self._step}: done in {time.monotonic() - self._began:.0f} s")

    def _print(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


class TerminalReporter:
    """One spinning line with elapsed time per step, replaced by a finished line at its end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status: Status | None = None
        self._step = ""
        self._began = 0.0

    def begin(self, step: str) -> None:
        self.close()
        self._step, self._began = step, time.monotonic()
        status = self._console.status(escape(step))
        status.start()
        self._status = status

    def update(self, detail: str) -> None:
        if self._status is not None:
            # A long package path must not wrap, or the live line would leave traces behind.
            room = max(10, self._console.width - len(self._step) - 16)
            self._status.update(f"{escape(self._step)} [dim]{self._elapsed()} {escape(detail[-room:])}[/dim]")

    def end(self) -> None:
        self.close()
        self._console.print(f"[green]✓[/green] {escape(self._step)} [dim]{self._elapsed()}[/dim]", highlight=False)

    def close(self) -> None:
        """Takes the live line away, for example because the step failed."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def _elapsed(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        return f"{minutes}:{seconds:02d}"


@contextmanager
def standard_reporter() -> Iterator[Reporter]:
    """A reporter on standard error that fits what it is connected to; leaves the terminal clean whatever happens."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield PlainReporter(sys.stderr)
        return
    reporter = TerminalReporter(console)
    try:
        yield reporter
    finally:
        reporter.close()
