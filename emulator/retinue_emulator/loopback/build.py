"""Builds missing loopback binaries from Go modules into the cache: once, one at a time, resumable, with progress."""

import asyncio
import errno
import fcntl
import os
import re
import shutil
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path

from .errors import LoopbackError
from .locate import Search, cache_root, current_search, find_all
from .process import ChildProcess, require_linux
from .progress import Reporter, standard_reporter
from .toolchain import GoToolchain, find_go
from .toolset import OPTIONAL_TOOLS, TOOLS, Tool, module_files

_UPDATE_SECONDS = 0.25
# The binaries themselves take 0.5 GB; a first build also fills Go's caches, which may be elsewhere.
_FREE_BYTES = 1 << 30


async def ensure_tools(
    names: Iterable[str] = tuple(TOOLS),
    *,
    environ: Mapping[str, str] | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Path]:
    """Paths of the named tools by name; what no look-up finds is built first (minutes when Go's caches are cold).

    By default all tools but the optional ones. Two processes never build at once: the second waits and then finds what
    the first has built. An interrupted build goes on with the first missing binary. Must run in the main thread. Raises
    LoopbackError with one line that says what is missing.
    """
    environ = os.environ if environ is None else environ
    wanted = tuple(names)
    unknown = set(wanted) - TOOLS.keys() - OPTIONAL_TOOLS.keys()
    if unknown:
        known = ", ".join((*TOOLS, *OPTIONAL_TOOLS))
        raise LoopbackError(f"there is no tool {', '.join(sorted(unknown))}", f"choose from {known}")
    paths: dict[str, Path] = {}
    for tools in (TOOLS, OPTIONAL_TOOLS):
        chosen = tuple(name for name in wanted if name in tools)
        if chosen:
            paths |= await _ensure(chosen, tools, current_search(environ, tools), reporter)
    return paths


async def _ensure(
    wanted: tuple[str, ...], tools: Mapping[str, Tool], search: Search, reporter: Reporter | None
) -> dict[str, Path]:
    found, missing = find_all(wanted, search, tools)
    if missing:
        require_linux()
        try:
            with standard_reporter() if reporter is None else nullcontext(reporter) as progress:
                await _build_missing(wanted, tools, search, progress)
        except OSError as error:
            raise _unwritable(search.cache, error) from error
        found, missing = find_all(wanted, search, tools)
        if missing:
            raise LoopbackError(f"{', '.join(missing)} vanished after the build", f"look into {search.cache}")
    return {name: location.path for name, location in found.items()}


async def _build_missing(
    wanted: tuple[str, ...], tools: Mapping[str, Tool], search: Search, reporter: Reporter
) -> None:
    search.bin.mkdir(parents=True, exist_ok=True)
    async with _build_lock(search.cache / "lock", reporter):
        _, missing = find_all(wanted, search, tools)
        if not missing:
            return
        free = shutil.disk_usage(search.cache).free
        if free < _FREE_BYTES:
            raise _no_space(search.cache)
        go = await find_go(search.environ, cache_root(search.environ), reporter)
        for number, name in enumerate(missing, start=1):
            tool = tools[name]
            reporter.begin(f"building {name} {tool.module.version} ({number} of {len(missing)})")
            # Go reads a copy of the module, so that an installed package or a checkout is never written to.
            module = write_module(module_files(tool.module), search.cache / "modules" / tool.module.name)
            logs = search.cache / "logs"
            await build(tool, go, module=module, binary=search.bin / name, logs=logs, update=reporter.update)
            reporter.end()


@asynccontextmanager
async def _build_lock(path: Path, reporter: Reporter) -> AsyncIterator[None]:
    """Holds the build lock of one cache folder. The kernel frees it when its holder dies."""
    with path.open("w") as lock:
        waiting = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
                if not waiting:
                    reporter.begin("waiting for another process that builds the same binaries")
                    waiting = True
                reporter.update("")
                await asyncio.sleep(_UPDATE_SECONDS)
            else:
                break
        if waiting:
            reporter.end()
        yield


async def build(
    tool: Tool, go: GoToolchain, *, module: Path, binary: Path, logs: Path, update: Callable[[str], None]
) -> None:
    """Builds a tool of the module folder into the file `binary`, which exists only once it is complete.

    update: called four times a second with the last line of Go's output, all of which goes into a file in `logs`.
    Raises LoopbackError.
    """
    output = binary.with_name(f".{binary.name}.building")
    log = logs / f"{tool.name}.log"
    log.unlink(missing_ok=True)
    child = ChildProcess.spawn(
        "go", [str(go.path), *tool.build_arguments(str(output))], log=log, cwd=module, env=go.environ
    )
    try:
        while (code := child.exit_code()) is None:
            last = child.log_tail(1, limit=512)
            update(last.removeprefix("go: "))
            await asyncio.sleep(_UPDATE_SECONDS)
    except BaseException:
        await child.stop(grace=0)
        raise
    if code != 0:
        output.unlink(missing_ok=True)
        raise explain_failure(tool, code, child.log_tail(200), log)
    output.replace(binary)


def write_module(files: Mapping[str, bytes], folder: Path) -> Path:
    """Writes the files of a module, by name, into a folder; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def _unwritable(folder: Path, error: OSError) -> LoopbackError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _no_space(folder)
    return LoopbackError(
        f"the cache folder {folder} cannot be used ({error.strerror or error})",
        "set XDG_CACHE_HOME to a writable folder",
    )


def _no_space(folder: Path) -> LoopbackError:
    return LoopbackError(
        f"there is no disk space left to build the control plane in {folder} and Go's caches",
        "free about 9 GB for a first build, or set XDG_CACHE_HOME, GOCACHE and GOMODCACHE to a larger disk",
    )


_FAILURES: tuple[tuple[str, Callable[[Tool, Path], LoopbackError]], ...] = (
    (r"no space left on device|disk quota exceeded", lambda _tool, log: _no_space(log.parent.parent)),
    (
        r"signal: killed|cannot allocate memory|out of memory",
        lambda tool, log: LoopbackError(
            f"the build of {tool.name} ran out of memory (see {log})", "free about 4 GB of memory and run it again"
        ),
    ),
    (
        r"checksum mismatch|SECURITY ERROR",
        lambda tool, log: LoopbackError(
            f"a module of {tool.name} is not what go.sum says (see {log})",
            "check GOPROXY and run `go clean -modcache`",
        ),
    ),
    (
        r"dial tcp|no such host|connection refused|i/o timeout|TLS handshake|proxyconnect|module lookup disabled"
        r"|unexpected EOF|x509:|reading https?://|\b(403|404|410|429|5\d\d) [A-Z]",
        lambda tool, log: LoopbackError(
            f"the Go module proxy cannot be reached or does not serve what {tool.name} needs (see {log})",
            "check the network and GOPROXY, or point KUBEBUILDER_ASSETS at ready-made binaries",
        ),
    ),
)


def explain_failure(tool: Tool, code: int, output: str, log: Path) -> LoopbackError:
    """What a failed `go build` means, from its last lines of output; the first matching cause wins."""
    for pattern, explain in _FAILURES:
        if re.search(pattern, output):
            return explain(tool, log)
    if code < 0:
        return LoopbackError(f"the build of {tool.name} was ended by signal {-code}", "run it again, it resumes")
    last = (output.strip().splitlines() or ["no output"])[-1]
    return LoopbackError(f"the build of {tool.name} failed: {last[:300]}", f"see {log}")
