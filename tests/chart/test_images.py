"""Building and loading images: which commands run, and the one line that says what to do when something is missing.

The container engine and kind are small scripts that write down how they were called.
"""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from .conftest import REPOSITORY

VERSION = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
ENGINE = """#!/bin/sh
echo "$@" >> "$CALLS"
case "$1 $FAILS" in
  "info info"|"pull "*pull*|"build build") exit 1 ;;
esac
case "$1 $2" in
  "image inspect") [ "$3" = --format ] && echo 123456789 || [ "$FAILS" != pull ] ;;
esac
"""
KIND = """#!/bin/sh
echo "$@" >> "$CALLS"
[ "$1" = get ] && echo kind
[ "$FAILS" != load ] || [ "$1" = get ]
"""


def run(script: str, tmp_path: Path, programs: dict[str, str], **environ: str) -> subprocess.CompletedProcess[str]:
    folder = tmp_path / "path"
    folder.mkdir()
    for name in ("sh", "sed", "dirname", "timeout", "awk", "grep", "rm"):
        (folder / name).symlink_to(
            next(path for path in (Path("/usr/bin") / name, Path("/bin") / name) if path.exists())
        )
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    environment = {"PATH": str(folder), "CALLS": str(tmp_path / "calls"), "FAILS": "", **environ}
    argv = ["/bin/sh", str(REPOSITORY / "images" / script)]
    return subprocess.run(argv, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)


def calls(tmp_path: Path) -> list[str]:
    return (tmp_path / "calls").read_text().splitlines()


@pytest.mark.parametrize(
    ("programs", "environ", "told"),
    [
        ({}, {}, "there is no container engine in PATH; install docker or podman"),
        ({}, {"CONTAINER_ENGINE": "nerdctl"}, "nerdctl was not found"),
        ({"docker": ENGINE}, {"FAILS": "info"}, "docker does not answer; start it"),
        ({"docker": ENGINE}, {"FAILS": "pull"}, "python:3.13-slim is neither here nor can it be pulled; check the reg"),
        ({"docker": ENGINE}, {"FAILS": "build"}, f"the build of retinue/operator:{VERSION} failed"),
    ],
    ids=["no-engine", "wrong-engine", "no-daemon", "no-registry", "build"],
)
def test_what_prevents_a_build_is_one_line_that_says_what_to_do(
    programs: dict[str, str], environ: dict[str, str], told: str, tmp_path: Path
) -> None:
    done = run("build.sh", tmp_path, programs, **environ)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


def test_three_images_are_built_with_one_version_and_their_sizes_are_told(tmp_path: Path) -> None:
    done = run("build.sh", tmp_path, {"podman": ENGINE}, REGISTRY="registry.example.com/team/", BASE_IMAGE="mine:1")
    assert done.returncode == 0, done.stderr
    built = [call for call in calls(tmp_path) if call.startswith("build ")]
    assert [re.search(r"--target (\w+) --tag (\S+)", call).groups() for call in built] == [  # type: ignore[union-attr]
        (name, f"registry.example.com/team/retinue/{name}:{VERSION}") for name in ("operator", "gateway", "emulator")
    ]
    assert all(f"--build-arg BASE_IMAGE=mine:1 --build-arg VERSION={VERSION}" in call for call in built)
    assert f"retinue/operator:{VERSION} 123 MB" in done.stdout


def test_loading_names_what_is_missing(tmp_path: Path) -> None:
    done = run("load.sh", tmp_path, {"kind": KIND}, KIND_CLUSTER="other")
    assert done.returncode == 1
    assert "there is no kind cluster other; make one with" in done.stderr


def test_all_images_are_loaded_into_the_cluster(tmp_path: Path) -> None:
    done = run("load.sh", tmp_path, {"kind": KIND})
    assert done.returncode == 0, done.stderr
    assert [call for call in calls(tmp_path) if call.startswith("load ")] == [
        f"load docker-image --name kind retinue/{name}:{VERSION}" for name in ("operator", "gateway", "emulator")
    ]


def test_every_source_of_the_dockerfile_exists_and_is_not_ignored() -> None:
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    dockerfile = (REPOSITORY / "images" / "Dockerfile").read_text()
    sources = [
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", dockerfile, re.MULTILINE)
        for source in line.split()[:-1]
        if "[" not in source
    ]
    assert sources
    for source in sources:
        assert (REPOSITORY / source).exists(), source
        assert f"!{source}" in ignored, source


def test_the_images_run_as_the_user_that_the_chart_sets() -> None:
    dockerfile = (REPOSITORY / "images" / "Dockerfile").read_text()
    assert "USER 65532:65532" in dockerfile
    pods = (REPOSITORY / "charts" / "retinue" / "templates" / "_pods.tpl").read_text()
    assert "runAsUser: 65532" in pods


@pytest.mark.parametrize("script", ["build.sh", "load.sh"])
def test_the_scripts_are_executable(script: str) -> None:
    assert os.access(REPOSITORY / "images" / script, os.X_OK)
