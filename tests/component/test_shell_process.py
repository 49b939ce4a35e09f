"""The operator as users start it: leader election between processes, exit codes, and errors of one line."""

import asyncio
import json
import re
import signal
import sys
import time
from pathlib import Path

import aiohttp
import pytest

from retinue_emulator.loopback import ClusterAccess, ControlPlane, eventually
from retinue_emulator.loopback.kubeconfig import render_kubeconfig

from .operatorprocess import DURATION, LEASE, RBAC, holder, operator

pytestmark = pytest.mark.component


@pytest.fixture
def account(cluster: ClusterAccess) -> ClusterAccess:
    """The cluster with the shipped rights installed and nobody holding the lease."""
    cluster.kubectl("apply", "--server-side", "-f", str(RBAC))
    cluster.kubectl("delete", *LEASE, "--ignore-not-found")
    return cluster


async def test_a_standby_takes_over_after_a_kill(account: ClusterAccess, namespace: str) -> None:
    async with operator(account, "first", namespace) as first:
        await first.says('"running"')
        async with operator(account, "second", namespace) as second:
            await second.says('"probes served"')
            first.process.kill()
            assert await first.ended() == -signal.SIGKILL
            killed = time.monotonic()
            await second.says('"running"')
            assert time.monotonic() - killed < 2 * DURATION
            assert await asyncio.to_thread(holder, account) == "second"


async def test_a_standby_is_ready_and_takes_over_at_once_after_a_graceful_stop(
    account: ClusterAccess, namespace: str
) -> None:
    async with operator(account, "first", namespace) as first:
        await first.says('"running"')
        async with operator(account, "second", namespace) as second:
            served = json.loads(await second.says('"probes served"'))

            async def standby_ready() -> bool:
                async with (
                    aiohttp.ClientSession() as http,
                    http.get(f"http://127.0.0.1:{served['port']}/readyz") as answer,
                ):
                    return answer.status == 200

            await eventually(standby_ready, what="the standby is ready")
            assert not any('"running"' in line for line in second.log)
            first.process.send_signal(signal.SIGTERM)
            assert await first.ended() == 0
            stopped = time.monotonic()
            await second.says('"running"')
            # Well before the lease would have run out.
            assert time.monotonic() - stopped < DURATION - 0.5
            second.process.send_signal(signal.SIGINT)
            assert await second.ended() == 0
    assert await asyncio.to_thread(holder, account) == ""


async def test_a_leader_that_loses_its_lease_ends_with_an_error(account: ClusterAccess, namespace: str) -> None:
    async with operator(account, "first", namespace) as first:
        await first.says('"running"')
        stolen = json.dumps({"spec": {"holderIdentity": "thief"}})
        await asyncio.to_thread(account.kubectl, "patch", *LEASE, "--type=merge", "-p", stolen)
        assert await first.ended() == 5
        assert any('"lease lost' in line for line in first.log)
    assert await asyncio.to_thread(holder, account) == "thief"


async def test_the_log_is_one_json_object_a_line(account: ClusterAccess, namespace: str) -> None:
    async with operator(account, "first", namespace) as first:
        await first.says('"running"')
        first.process.terminate()
        await first.ended()
        for line in first.log:
            entry = json.loads(line)
            assert {"message", "level", "timestamp", "logger"} <= set(entry)


async def ends(*flags: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "retinue_operator", "run", "--log-level=error", *flags, stderr=asyncio.subprocess.PIPE
    )
    _, output = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_a_missing_kubeconfig_is_one_line_that_says_what_to_do() -> None:
    code, output = await ends("--kubeconfig=/nowhere/config")
    assert code == 3
    assert output == "retinue-operator: /nowhere/config does not exist: give --kubeconfig FILE or set KUBECONFIG\n"


async def test_an_api_server_that_does_not_answer_is_one_line(tmp_path: Path, cluster: ClusterAccess) -> None:
    kubeconfig = tmp_path / "config"
    text = render_kubeconfig(
        server="https://127.0.0.1:9", ca_certificate=cluster.ca_certificate, token="x", user="nobody"
    )
    kubeconfig.write_text(text)
    code, output = await ends(f"--kubeconfig={kubeconfig}", "--http-port=0")
    assert code == 3
    assert re.fullmatch(r"retinue-operator: https://127\.0\.0\.1:9 cannot be used with kubeconfig .*\n", output)


async def test_missing_crds_are_named_with_the_remedy() -> None:
    async with ControlPlane() as bare:
        code, output = await ends(f"--kubeconfig={bare.kubeconfig}", "--http-port=0")
    assert code == 4
    assert output.count("\n") == 1
    assert "agentpools.retinue.dev" in output
    assert "kubectl apply --server-side -f crds/" in output


async def test_settings_that_do_not_fit_together_are_a_usage_error() -> None:
    code, output = await ends("--lease-duration=5", "--lease-renew-deadline=9")
    assert code == 2
    assert "retry period < renew deadline < duration" in output
