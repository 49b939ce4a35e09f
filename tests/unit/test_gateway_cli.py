"""The command line: help, and which of flags, environment and defaults wins."""

import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from retinue_gateway import cli
from retinue_gateway.settings import GatewaySettings


@pytest.fixture(autouse=True)
def logs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """How logs would have been set up: that is for the whole process, which here is the test run."""
    seen: list[tuple[str, str]] = []
    monkeypatch.setattr(cli, "configure_logs", lambda level, form: seen.append((level, form)))
    return seen


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[GatewaySettings]:
    """The settings that `run` would serve with."""
    seen: list[GatewaySettings] = []

    async def serve(settings: GatewaySettings) -> None:
        seen.append(settings)

    monkeypatch.setattr(cli, "_serve", serve)
    return seen


def run(*arguments: str, **environment: str) -> Any:
    return CliRunner().invoke(cli.app, ["run", *arguments], env=environment)


def test_flags_win_over_the_environment_which_wins_over_defaults(served: list[GatewaySettings]) -> None:
    environment = {"RETINUE_GATEWAY_PORT": "1111", "RETINUE_GATEWAY_QUEUE_TIMEOUT": "7"}
    result = run("--port=2222", "--session-header=X-A", "--session-header=x-b", **environment)
    assert result.exit_code == 0
    assert (served[0].port, served[0].queue_timeout, served[0].max_attempts) == (2222, 7.0, 8)
    assert served[0].session_headers == ("x-a", "x-b")


def test_logs_are_set_up_as_asked(served: list[GatewaySettings], logs: list[tuple[str, str]]) -> None:
    assert run("--log-format=text", RETINUE_GATEWAY_LOG_LEVEL="debug").exit_code == 0
    assert (len(served), logs) == (1, [("debug", "text")])


def test_a_bad_value_is_one_clear_line(served: list[GatewaySettings]) -> None:
    result = run("--port=99999")
    assert result.exit_code == 2
    assert "invalid settings: port: Input should be less than or equal to 65535" in result.output
    assert not served


def test_every_setting_has_a_flag() -> None:
    text = CliRunner().invoke(cli.app, ["run", "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"}).output
    flags = set(re.findall(r"--[a-z-]+", text))
    repeated = {"namespaces": "namespace"} | {
        name: name.removesuffix("s") for name in GatewaySettings.model_fields if name.endswith("_headers")
    }
    for name in GatewaySettings.model_fields:
        assert "--" + repeated.get(name, name).replace("_", "-") in flags, name


def test_a_port_that_is_taken_ends_with_the_reason(tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "c",
                "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
                "users": [{"name": "u", "user": {"token": "t"}}],
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            }
        )
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run(f"--kubeconfig={kubeconfig}", "--host=127.0.0.1", f"--port={port}")
    assert result.exit_code == 1
    assert f"cannot listen on 127.0.0.1:{port}" in result.output


def test_a_missing_cluster_ends_with_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    result = run(f"--kubeconfig={tmp_path / 'none.yaml'}", "--port=0")
    assert result.exit_code == 1
    assert "none.yaml" in result.output
