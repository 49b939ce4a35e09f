"""Missing binaries are built once, resumably and one builder at a time; a failure is one line that says what to do."""

import asyncio
import io
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from retinue_emulator.loopback import LoopbackError, ensure_tools
from retinue_emulator.loopback.build import explain_failure
from retinue_emulator.loopback.cli import app
from retinue_emulator.loopback.locate import current_search
from retinue_emulator.loopback.progress import PlainReporter
from retinue_emulator.loopback.toolchain import build_environment, go_version
from retinue_emulator.loopback.toolset import OPTIONAL_TOOLS, TOOLS

FAKE_GO = """#!/bin/sh
if [ "$1" = version ]; then echo "go version go1.26.8 linux/amd64"; exit 0; fi
if [ -n "$FAKE_GO_FAILS" ]; then echo "$FAKE_GO_FAILS"; exit 1; fi
while [ $# -gt 1 ]; do [ "$1" = -o ] && output=$2; shift; done
test -f go.mod || exit 3
printf '#!/bin/sh\\n# %s\\n' "$1" > "$output"
/bin/chmod 755 "$output"
echo "$1" >> "$FAKE_GO_BUILDS"
"""


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment whose `go` writes a line per build to `builds` and makes a little script of each binary."""
    go = tmp_path / "path" / "go"
    go.parent.mkdir()
    go.write_text(FAKE_GO)
    go.chmod(0o755)
    return {
        "PATH": str(go.parent),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "FAKE_GO_BUILDS": str(tmp_path / "builds"),
    }


def builds(environ: dict[str, str]) -> list[str]:
    log = Path(environ["FAKE_GO_BUILDS"])
    return log.read_text().splitlines() if log.exists() else []


async def test_all_tools_are_built_in_order_with_progress_and_then_found(environ: dict[str, str]) -> None:
    shown = io.StringIO()
    paths = await ensure_tools(environ=environ, reporter=PlainReporter(shown))
    assert builds(environ) == [tool.package for tool in TOOLS.values()]
    assert {path.parent for path in paths.values()} == {current_search(environ).bin}
    begun, done = shown.getvalue().splitlines()[:2]
    assert begun == "building etcd 3.7.1 (1 of 7)"
    assert re.fullmatch(re.escape(begun) + r": done in \d+ s", done)
    assert await ensure_tools(environ=environ, reporter=PlainReporter(shown)) == paths
    assert len(builds(environ)) == len(TOOLS)


async def test_optional_tools_are_built_only_by_name_and_beside_the_others(environ: dict[str, str]) -> None:
    paths = await ensure_tools(("helm3", "etcd"), environ=environ, reporter=PlainReporter(io.StringIO()))
    assert builds(environ) == [TOOLS["etcd"].package, OPTIONAL_TOOLS["helm3"].package]
    assert paths["etcd"].parent == current_search(environ).bin
    assert paths["helm3"].parent == current_search(environ, OPTIONAL_TOOLS).bin != paths["etcd"].parent


async def test_a_tool_that_does_not_exist_is_named_with_those_that_do(environ: dict[str, str]) -> None:
    with pytest.raises(LoopbackError, match=r"there is no tool helm5.*etcd.*helm4"):
        await ensure_tools(("helm5",), environ=environ)


async def test_an_interrupted_build_goes_on_with_what_is_missing(environ: dict[str, str]) -> None:
    reporter = PlainReporter(io.StringIO())
    await ensure_tools(("etcd",), environ=environ, reporter=reporter)
    half_written = current_search(environ).bin / ".kubectl.building"
    half_written.write_text("half")
    await ensure_tools(("etcd", "kubectl"), environ=environ, reporter=reporter)
    assert builds(environ) == [TOOLS["etcd"].package, TOOLS["kubectl"].package]
    assert not half_written.exists()


async def test_two_builders_at_once_build_each_binary_once(environ: dict[str, str]) -> None:
    both = (ensure_tools(("etcd", "kubectl"), environ=environ, reporter=PlainReporter(io.StringIO())) for _ in range(2))
    first, second = await asyncio.gather(*both)
    assert first == second
    assert sorted(builds(environ)) == sorted([TOOLS["etcd"].package, TOOLS["kubectl"].package])


async def test_a_failed_build_leaves_no_binary_and_says_why(environ: dict[str, str]) -> None:
    environ["FAKE_GO_FAILS"] = "go: reading module: dial tcp: lookup proxy: no such host"
    with pytest.raises(LoopbackError, match=r"the Go module proxy cannot be reached .*: check the network and GOPROXY"):
        await ensure_tools(("etcd",), environ=environ, reporter=PlainReporter(io.StringIO()))
    assert list(current_search(environ).bin.iterdir()) == []


async def test_a_cache_folder_that_cannot_be_made_is_explained(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    environ["XDG_CACHE_HOME"] = str(tmp_path / "file")
    with pytest.raises(LoopbackError, match=r"cannot be used .*: set XDG_CACHE_HOME"):
        await ensure_tools(("etcd",), environ=environ, reporter=PlainReporter(io.StringIO()))


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("write /tmp/x: no space left on device", "there is no disk space left"),
        ("compile: signal: killed", "ran out of memory"),
        ("verifying module: checksum mismatch", "is not what go.sum says"),
        ("reading https://proxy/x: 404 Not Found", "cannot be reached or does not serve"),
        ("net/http: TLS handshake timeout", "cannot be reached or does not serve"),
        ("a.go:1: syntax error", "the build of etcd failed: a.go:1: syntax error"),
        ("", "the build of etcd failed: no output"),
    ],
)
def test_the_cause_of_a_failed_build_is_named(output: str, message: str) -> None:
    error = explain_failure(TOOLS["etcd"], 1, output, Path("/cache/logs/etcd.log"))
    assert message in error.message
    assert "\n" not in str(error)


def test_a_build_ended_by_a_signal_can_be_resumed() -> None:
    assert explain_failure(TOOLS["etcd"], -9, "", Path("/log")).remedy == "run it again, it resumes"


def test_the_build_environment_is_for_this_machine_and_fetches_no_toolchain() -> None:
    environ = build_environment({"GOOS": "plan9", "GOROOT": "/x", "GOPROXY": "p", "GOFLAGS": "-mod=mod", "HOME": "/h"})
    assert environ == {
        "GOPROXY": "p",
        "HOME": "/h",
        "CGO_ENABLED": "0",
        "GOFLAGS": "-buildvcs=false",
        "GOWORK": "off",
        "GOTOOLCHAIN": "local",
    }


def test_the_version_of_go_is_read_from_what_it_prints() -> None:
    assert go_version("go version go1.26.8 linux/amd64") == (1, 26)
    assert go_version("go version go1.30rc1 linux/arm64") == (1, 30)
    assert go_version("nothing of the kind") is None


@pytest.mark.parametrize("command", ["build", "where"])
def test_the_commands_show_one_line_instead_of_a_traceback(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_ASSET_ETCD", "/nowhere/etcd")
    result = CliRunner().invoke(app, [command])
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "error: TEST_ASSET_ETCD names /nowhere/etcd, which is not an executable file: "
        "point it at the etcd binary or unset it"
    ]
