"""A real Kubernetes control plane on 127.0.0.1: etcd, API server, controller manager and scheduler as children."""

import asyncio
import datetime
import fcntl
import logging
import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from . import certificates
from .access import ClusterAccess
from .audit import AuditEvent, read_events, render_policy
from .build import ensure_tools
from .components import API_SERVER, COMPONENTS, CONTROLLER_MANAGER, ETCD, SCHEDULER, Launch, Layout, Ports
from .errors import LoopbackError, PortTakenError
from .health import raise_if_ended, trusting, wait_healthy
from .kubeconfig import render_kubeconfig
from .ports import HOST, pick_ports
from .private_files import write_private
from .process import ChildProcess
from .progress import Reporter
from .toolset import CONTROL_PLANE_TOOLS

_LOGGER = logging.getLogger(__name__)
_START_ATTEMPTS = 5
_READY_SECONDS = 90.0
# An API server with open watches would take up to a minute; etcd has every answered write already.
_GRACE_SECONDS = 3.0
_WATCH_SECONDS = 0.5
# Signals that a component survives.
_HARMLESS = frozenset({signal.SIGSTOP, signal.SIGCONT})


class ControlPlane(ClusterAccess):
    """One control plane; `async with ControlPlane() as cluster:` starts and stops it.

    Nothing is tied to an event loop, so it may be started in one loop and stopped in another. It must be started in
    the main thread (see ChildProcess.spawn); its processes die with this one even when this one is killed.

    state: folder for data, keys and logs. Given, it is kept, and a later start on it continues with the same objects
    and
        tokens. By default a temporary folder, removed at a clean stop unless `keep`; after a failure its logs stay.
    audit: record every write request, see `audit_events`.
    audit_reads: namespaces whose service accounts' other requests are recorded, too; means nothing without `audit`.
    extra_args: more command-line arguments by component name; they win over the built-in ones.
    reporter: receives the progress of a build, if binaries are missing; by default it is shown on standard error.
    """

    def __init__(
        self,
        *,
        state: Path | None = None,
        keep: bool = False,
        audit: bool = False,
        audit_reads: Sequence[str] = (),
        extra_args: Mapping[str, Sequence[str]] | None = None,
        environ: Mapping[str, str] | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        extra = dict(extra_args or {})
        if unknown := sorted(set(extra) - set(COMPONENTS)):
            raise ValueError(f"extra_args names {', '.join(unknown)}; the components are {', '.join(COMPONENTS)}")
        self._temporary = state is None
        default = Path(tempfile.gettempdir()) / f"retinue-loopback-{secrets.token_hex(6)}"
        self.layout = Layout(default if state is None else state.absolute())
        super().__init__(self.layout.admin_kubeconfig, Path("kubectl"), self.layout.kubeconfigs)
        self._keep = keep
        self._audit = audit
        self._audit_reads = tuple(audit_reads)
        self._extra = extra
        self._environ = dict(os.environ if environ is None else environ)
        self._reporter = reporter
        self._launch: Launch | None = None
        self._lock: IO[str] | None = None
        self._children: dict[str, ChildProcess] = {}
        # Components that the caller took down; all others are expected to run.
        self._down: set[str] = set()

    @property
    def state(self) -> Path:
        """The folder with data, keys and logs."""
        return self.layout.state

    @property
    def logs(self) -> Path:
        """The folder with one log file per component and `audit.log`."""
        return self.layout.logs

    @property
    def server(self) -> str:
        """The URL of the API server."""
        return f"https://{HOST}:{self._started().ports.api_server}"

    @property
    def ca_certificate(self) -> bytes:
        """The CA of the API server as PEM."""
        return self.ca_file.read_bytes()

    @property
    def ca_file(self) -> Path:
        """A file with the CA of the API server as PEM."""
        return self._started().credentials.ca_certificate

    @property
    def serving_files(self) -> tuple[Path, Path]:
        """Files with certificate and key of the API server as PEM, for a proxy that stands in its place."""
        credentials = self._started().credentials
        return credentials.serving_certificate, credentials.serving_key

    @property
    def admin_token(self) -> str:
        """The bearer token of a user in system:masters."""
        return self._started().credentials.tokens[certificates.ADMIN.name]

    def pids(self) -> dict[str, int]:
        """Process id by component, of the components that run."""
        return {name: child.pid for name, child in self._children.items() if child.exit_code() is None}

    def audit_events(self, *, reads: bool = False) -> Iterator[AuditEvent]:
        """All writes so far, with `reads` all that is recorded, oldest first. Raises LoopbackError without `audit`."""
        if not self._audit:
            raise LoopbackError("this control plane keeps no audit log", "create it with audit=True")
        return read_events(self.layout.audit_log, reads=reads)

    async def start(self) -> None:
        """Builds what is missing, starts all components and returns when all are ready. Cleans up if it fails."""
        if self._children:
            raise LoopbackError("this control plane is already started", "stop it first, or create another one")
        tools = await ensure_tools(CONTROL_PLANE_TOOLS, environ=self._environ, reporter=self._reporter)
        self.kubectl_path = tools["kubectl"]
        try:
            try:
                self._prepare_state()
            except OSError as error:
                raise LoopbackError(
                    f"the state folder {self.state} cannot be used ({error.strerror or error})",
                    "choose a writable folder with free space (TMPDIR is where temporary ones go)",
                ) from error
            credentials = certificates.load_or_create(self.layout.credentials, datetime.datetime.now(datetime.UTC))
            for attempt in range(1, _START_ATTEMPTS + 1):
                launch = Launch(tools, Ports(*pick_ports(5)), self.layout, credentials, self._audit, self._extra)
                try:
                    await self._start_all(launch)
                    break
                except PortTakenError:
                    await self._stop_children()
                    if attempt == _START_ATTEMPTS:
                        raise
        except BaseException:
            await self.stop(keep_logs=True)
            raise

    async def stop(self, *, keep_logs: bool = False) -> None:
        """Stops all components in reverse order. A temporary state folder goes, except for its logs if `keep_logs`."""
        try:
            await self._stop_children()
        finally:
            if self._lock is not None:
                self._lock.close()
                self._lock = None
        if self._temporary and not self._keep and self.state.exists():
            doomed = [path for path in self.state.iterdir() if path != self.logs] if keep_logs else [self.state]
            for path in doomed:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # A cancelled or interrupted run has not failed: nobody will read its logs.
        failed = isinstance(error, Exception)
        await self.stop(keep_logs=failed)
        if failed and self._temporary:
            _LOGGER.warning("the logs of the loopback control plane are kept in %s", self.logs)

    def kill(self, component: str, sig: signal.Signals = signal.SIGKILL) -> None:
        """Sends a signal to a component and returns at once; one that ends of it stays down until `start_component`."""
        child = self._child(component)
        if sig not in _HARMLESS:
            self._down.add(component)
        child.send(sig)

    async def start_component(self, component: str, *, timeout: float = _READY_SECONDS) -> None:
        """Starts a component that was killed or stopped, on its old port and data, and waits until it is ready.

        Others that have ended meanwhile without being asked are started again too, as a kubelet would do: a controller
        manager gives up when the API server goes away while it starts.
        """
        # A killed process may still be about to end.
        await self._child(component).wait(_GRACE_SECONDS)
        self._spawn(component, self._started())
        await self._wait_component(component, timeout)
        for other, child in list(self._children.items()):
            if other not in self._down and child.exit_code() is not None:
                self._spawn(other, self._started())
                await self._wait_component(other, timeout)

    async def stop_component(self, component: str) -> None:
        """Stops one component in order and leaves it down until `start_component`."""
        self._down.add(component)
        await self._child(component).stop(_GRACE_SECONDS)

    async def restart(self, component: str, *, timeout: float = _READY_SECONDS) -> None:
        """Stops one component in order, starts it again and waits until it is ready."""
        await self.stop_component(component)
        await self.start_component(component, timeout=timeout)

    async def wait_ready(self, timeout: float = _READY_SECONDS) -> None:
        """Returns when every component is ready. Raises LoopbackError when one has ended or takes too long."""
        for component in COMPONENTS:
            await self._wait_component(component, timeout)

    async def run_until_failure(self) -> None:
        """Returns never; raises LoopbackError as soon as a component ends by itself."""
        while True:
            for child in self._children.values():
                raise_if_ended(child)
            await asyncio.sleep(_WATCH_SECONDS)

    def _prepare_state(self) -> None:
        self.state.mkdir(mode=0o700, parents=True, exist_ok=not self._temporary)
        lock = (self.state / "lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise LoopbackError(f"{self.state} is in use by another control plane", "choose another folder") from error
        self._lock = lock
        if self._audit:
            self.layout.audit_policy.write_text(render_policy(self._audit_reads))

    async def _start_all(self, launch: Launch) -> None:
        self._launch = launch
        self._write_kubeconfigs(launch)
        # The API server keeps trying until etcd answers; the two others give up soon without an API server.
        self._spawn(ETCD, launch)
        self._spawn(API_SERVER, launch)
        await self._wait_component(ETCD, _READY_SECONDS)
        await self._wait_component(API_SERVER, _READY_SECONDS)
        self._spawn(CONTROLLER_MANAGER, launch)
        self._spawn(SCHEDULER, launch)
        await self._wait_component(CONTROLLER_MANAGER, _READY_SECONDS)
        await self._wait_component(SCHEDULER, _READY_SECONDS)

    def _write_kubeconfigs(self, launch: Launch) -> None:
        ca_certificate = launch.credentials.ca_certificate.read_bytes()
        for path, user in (
            (self.layout.admin_kubeconfig, certificates.ADMIN),
            (self.layout.kubeconfig(CONTROLLER_MANAGER), certificates.CONTROLLER_MANAGER),
            (self.layout.kubeconfig(SCHEDULER), certificates.SCHEDULER),
        ):
            token = launch.credentials.tokens[user.name]
            text = render_kubeconfig(server=self.server, ca_certificate=ca_certificate, token=token, user=user.name)
            write_private(path, text)

    def _spawn(self, component: str, launch: Launch) -> None:
        # etcd takes any setting from ETCD_* too; a variable meant for another etcd must not reach this one.
        environ = {name: value for name, value in self._environ.items() if not name.startswith("ETCD_")}
        self._children[component] = ChildProcess.spawn(
            component, launch.argv(component), log=self.layout.log(component), cwd=self.state, env=environ
        )
        self._down.discard(component)

    async def _wait_component(self, component: str, timeout: float) -> None:
        launch = self._started()
        url = launch.health_url(component)
        secure = url.startswith("https:")
        await wait_healthy(
            self._child(component),
            url,
            timeout=timeout,
            tls=trusting(launch.credentials.ca_certificate) if secure else None,
            headers={"Authorization": f"Bearer {self.admin_token}"} if secure else None,
        )

    async def _stop_children(self) -> None:
        try:
            for component in reversed(COMPONENTS):
                if component in self._children:
                    await self._children[component].stop(_GRACE_SECONDS)
        except BaseException:
            for child in self._children.values():
                child.send(signal.SIGKILL)
            raise
        self._children.clear()
        self._down.clear()

    def _started(self) -> Launch:
        if self._launch is None:
            raise LoopbackError("the control plane is not started", "call start() first")
        return self._launch

    def _child(self, component: str) -> ChildProcess:
        if component not in self._children:
            raise LoopbackError(f"{component} is not running", f"the components are {', '.join(COMPONENTS)}")
        return self._children[component]
