"""How a long run shows where it is: one line per stage, a spinner on a terminal, sparse plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.status import Status

_PLAIN_SECONDS = 5.0


class Stage:
    """One step under way. `update` says what it does just now, `done` what came of it."""

    def __init__(self, title: str, console: Console | None, *, spinner: bool) -> None:
        self.title = title
        self.result = ""
        self._console = console
        self._began = self._printed = time.monotonic()
        self._status: Status | None = None
        if spinner and console is not None and console.is_terminal:
            self._status = console.status(escape(title))
            self._status.start()

    @property
    def seconds(self) -> float:
        """Wall seconds since the stage began."""
        return time.monotonic() - self._began

    def update(self, detail: str) -> None:
        """What is going on; called as often as the caller likes."""
        if self._console is None:
            return
        if self._status is not None:
            room = max(10, self._console.width - len(self.title) - 12)
            self._status.update(f"{escape(self.title)} [dim]{self.seconds:.0f} s {escape(detail[:room])}[/dim]")
        elif time.monotonic() - self._printed >= _PLAIN_SECONDS:
            self._printed = time.monotonic()
            self._print(f"  .. {self.title}: {detail} ({self.seconds:.0f} s)")

    def done(self, result: str) -> None:
        """The outcome, shown when the stage ends."""
        self.result = result

    def close(self, *, failed: bool) -> None:
        """Takes the live line away and prints the final one."""
        if self._status is not None:
            self._status.stop()
            self._status = None
        if self._console is None:
            return
        mark = "[red]failed[/red]" if failed else "[green]ok[/green]"
        line = f"{mark} {escape(self.title)} [dim]{self.seconds:.1f} s[/dim]"
        if self.result and not failed:
            line += f"  {escape(self.result)}"
        self._console.print(line, highlight=False, soft_wrap=True)

    def _print(self, line: str) -> None:
        if self._console is not None:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class Stages:
    """Makes stages. Without a console nothing is shown, as tests want it."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console

    @contextmanager
    def stage(self, title: str, *, spinner: bool = True) -> Iterator[Stage]:
        """A stage for the length of a `with` block; one that an exception ends is shown as failed.

        A stage that shows something else on the terminal meanwhile has no spinner.
        """
        stage = Stage(title, self.console, spinner=spinner)
        try:
            yield stage
        except BaseException:
            stage.close(failed=True)
            raise
        stage.close(failed=False)
