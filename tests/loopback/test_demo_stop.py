"""Ctrl-C, SIGTERM and even SIGKILL end the demo at any moment, and no process and no temporary folder stays behind."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.component

MARK = "DEMO_STOP_TEST"
START_SECONDS = 120.0
STOP_SECONDS = 40.0


class DemoProcess:
    """A demo in a process of its own whose children can be told by a mark in their environment."""

    def __init__(self, folder: Path) -> None:
        value = f"{folder.name}-{os.getpid()}"
        self.mark = f"{MARK}={value}"
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.log = folder / "demo.log"
        environ = {**os.environ, MARK: value, "TMPDIR": str(self.temporary)}
        command = [
            sys.executable,
            "-m",
            "retinue_emulator",
            "demo",
            "--sessions",
            "2",
            "--report",
            str(folder / "report"),
        ]
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(command, env=environ, stdout=output, stderr=subprocess.STDOUT)

    def wait_for_line(self, text: str) -> None:
        """Returns once the demo has printed it; fails with its whole output when it ends before or takes too long."""
        deadline = time.monotonic() + START_SECONDS
        while text not in self.output():
            assert self.process.poll() is None, f"the demo ended before {text!r}:\n{self.output()}"
            assert time.monotonic() < deadline, f"no {text!r} within {START_SECONDS} s:\n{self.output()}"
            time.sleep(0.02)

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def left(self) -> list[str]:
        """Command lines of all processes that carry the mark."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"{self.mark}\0".encode() in (folder / "environ").read_bytes():
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        return found

    def wait_gone(self) -> None:
        """Returns once no marked process is left; fails with their command lines."""
        deadline = time.monotonic() + 10.0
        while left := self.left():
            assert time.monotonic() < deadline, f"left behind: {left}"
            time.sleep(0.05)


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[DemoProcess]:
    process = DemoProcess(tmp_path)
    try:
        yield process
    finally:
        if process.process.poll() is None:
            process.process.kill()
            process.process.wait()


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("Retinue demo", signal.SIGINT),
        ("ok Control plane binaries", signal.SIGINT),
        ("ok CRDs and RBAC", signal.SIGTERM),
        ("ok Emulated nodes", signal.SIGINT),
        ("ok Gateway", signal.SIGTERM),
        ("ok Pools become Ready", signal.SIGINT),
    ],
)
def test_a_signal_ends_the_demo_in_order_and_leaves_nothing(
    demo: DemoProcess, moment: str, number: signal.Signals
) -> None:
    demo.wait_for_line(moment)
    demo.process.send_signal(number)
    assert demo.process.wait(STOP_SECONDS) == 128 + number, demo.output()
    demo.wait_gone()
    assert "Traceback" not in demo.output()
    assert list(demo.temporary.iterdir()) == []


def test_a_killed_demo_takes_all_its_processes_with_it(demo: DemoProcess) -> None:
    demo.wait_for_line("ok Gateway")
    assert len(demo.left()) >= 9
    demo.process.kill()
    demo.process.wait()
    demo.wait_gone()


def test_a_part_that_dies_ends_the_demo_at_once_with_the_tail_of_its_log(demo: DemoProcess) -> None:
    demo.wait_for_line("ok Pools become Ready")
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            ours = f"{demo.mark}\0".encode() in (folder / "environ").read_bytes()
            if ours and b"retinue_gateway" in (folder / "cmdline").read_bytes():
                os.kill(int(folder.name), signal.SIGKILL)
    assert demo.process.wait(STOP_SECONDS) == 1
    demo.wait_gone()
    assert "gateway ended with signal 9" in demo.output()
    assert "logs are kept in" in demo.output()
    assert any(demo.temporary.rglob("gateway.log"))
