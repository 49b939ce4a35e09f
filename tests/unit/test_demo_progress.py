"""How the demo shows where it is: stages, live lines, the checkout it needs, signals and exit codes."""

import asyncio
import io
import os
import signal
from pathlib import Path

import pytest
from rich.console import Console

from retinue_emulator.checkout import find_checkout
from retinue_emulator.demo.cli import run_until_signal
from retinue_emulator.demo.live import clock, describe_move, live_view, model_time, pool_table
from retinue_emulator.demo.run import Demo, DemoOptions
from retinue_emulator.demo.summary import keep_text
from retinue_emulator.demo.timeline import Move, PoolSample, RoleSample, Sample, TierSample, Timeline
from retinue_emulator.loopback import LoopbackError
from retinue_emulator.replay.runner import Progress
from retinue_emulator.stages import Stages

SAMPLE = Sample(
    at=61.0,
    pools=(
        PoolSample("prefill", "coder-primary", "primary", 3, 0, 1, 2, 0, True, ""),
        PoolSample("decode", "coder-primary", "primary", 2, 0, 0, 2, 1, True, ""),
        PoolSample("decode", "coder-explorer", "explorer", 1, 0, 0, 1, 0, True, ""),
    ),
    tiers=(
        TierSample("coder-warm", "HostMemory", 5, 1, 0.2, 0.01, "80Gi", True),
        TierSample("coder-cold", "ContextStorage", 2, 2, 0.34, 0.5, "256Gi", True),
    ),
    roles=(RoleSample("primary", "minimax-m2.5", True, 0.963), RoleSample("explorer", "gpt-oss-20b", True, 0.877)),
    open_sessions=27,
    context_tokens=1_500_000,
    hit_rate=0.95,
    ttft_p95=0.1,
    itl_p95=0.0008,
    cost_per_hour=82.0,
    decision="WithinGoals: nothing to do",
)


def plain_console() -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=80, force_terminal=False), out


def test_a_stage_is_one_line_with_its_outcome_on_a_plain_console() -> None:
    console, out = plain_console()
    with Stages(console).stage("Control plane") as stage:
        stage.update("etcd")
        stage.done("at https://127.0.0.1:1")
    assert out.getvalue().startswith("ok Control plane 0.")
    assert out.getvalue().endswith("at https://127.0.0.1:1\n")


def test_a_stage_that_an_error_ends_is_shown_as_failed() -> None:
    console, out = plain_console()
    with pytest.raises(LoopbackError), Stages(console).stage("Gateway"):
        raise LoopbackError("gateway ended", "see its log")
    assert out.getvalue().startswith("failed Gateway")


def test_stages_without_a_console_print_nothing() -> None:
    with Stages().stage("Gateway") as stage:
        stage.update("x")
        stage.done("y")
    assert stage.result == "y"


def test_the_pool_table_fits_into_80_columns_without_cutting_anything() -> None:
    console, out = plain_console()
    console.print(pool_table(SAMPLE))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in out.getvalue()
    assert lines[0].split() == [
        "role",
        "pool",
        "want",
        "pending",
        "starting",
        "ready",
        "draining",
        "hit",
        "rate",
        "fill",
    ]
    assert lines[1].split() == ["primary", "prefill", "3", "1", "2", "0.963"]
    assert lines[5].split() == ["tier", "cold", "2", "2", "0.500", "34%", "of", "256Gi"]


def test_without_a_terminal_every_decision_is_a_line_at_once_and_only_once() -> None:
    console, out = plain_console()
    timeline = Timeline()
    timeline.add(SAMPLE)
    timeline.moves.append(Move(60.0, "prefill/coder-primary", 2, 3, "CacheFloor", "open sessions hold more"))
    with live_view(console, 12.0, Progress()) as view:
        view.show(timeline)
        view.show(timeline)
    assert out.getvalue() == "  >> 12:00 prefill/coder-primary 2 -> 3 CacheFloor: open sessions hold more\n"


def test_latencies_and_times_read_as_model_time() -> None:
    assert model_time(None) == "-"
    assert model_time(0.0096) == "9.6 ms"
    assert model_time(1.25) == "1.2 s"
    assert clock(725) == "12:05"
    assert clock(-5) == "-0:05"
    move = Move(10.0, "tier/coder-cold", 1, 2, "SessionCache", "2 wanted")
    assert describe_move(move, 6.0) == "1:00 tier/coder-cold 1 -> 2 SessionCache: 2 wanted"


def test_a_kept_cluster_comes_with_the_lines_to_paste(tmp_path: Path) -> None:
    text = keep_text(tmp_path / "a folder" / "kubeconfig", tmp_path / "bin" / "kubectl")
    assert f"export KUBECONFIG='{tmp_path}/a folder/kubeconfig'" in text
    assert f"export PATH={tmp_path}/bin:$PATH" in text
    assert "kubectl get ap,pp,dp,kvt,nc" in text


def test_the_checkout_is_found_from_any_folder_inside_it() -> None:
    checkout = find_checkout(Path(__file__))
    assert any(checkout.crds.glob("*.yaml"))
    assert any(checkout.deploy.glob("*.yaml"))


def test_outside_a_checkout_one_line_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(LoopbackError, match="run this from a clone"):
        find_checkout(tmp_path)


class Waiting(Demo):
    """A demo that only waits, after telling the test that it has begun."""

    def __init__(self, *, kept: int | None) -> None:
        super().__init__(DemoOptions(), Console(file=io.StringIO()))
        self.kept = kept
        self.cleaned = False

    async def run(self) -> int:
        try:
            self.exit_code = self.kept
            asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)
            await asyncio.Event().wait()
            return 0
        finally:
            self.cleaned = True


@pytest.mark.parametrize(("kept", "code"), [(None, 128 + signal.SIGTERM), (0, 0), (1, 1)])
def test_a_signal_cleans_up_and_a_kept_cluster_keeps_the_result_of_its_run(kept: int | None, code: int) -> None:
    run = Waiting(kept=kept)
    assert run_until_signal(run, Console(file=io.StringIO())) == code
    assert run.cleaned


class Failing(Demo):
    """A demo that fails as expected failures do."""

    async def run(self) -> int:
        raise LoopbackError("the operator ended with status 3", "see its log")


def test_an_expected_failure_is_one_line_and_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_until_signal(Failing(DemoOptions(), Console(file=io.StringIO())), Console(file=io.StringIO())) == 1
    assert capsys.readouterr().err == "error: the operator ended with status 3: see its log\n"
