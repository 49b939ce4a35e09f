"""A Prometheus server as a child process that scrapes the pods of a cluster and can be asked, stopped and started."""

import logging
import secrets
import shutil
import signal
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .build import ensure_tools
from .errors import LoopbackError, PortTakenError
from .health import wait_healthy
from .ports import HOST, pick_ports
from .process import ChildProcess
from .progress import Reporter
from .prometheus_api import PrometheusApi, Sample
from .prometheus_config import StaticTarget, render_config

_LOGGER = logging.getLogger(__name__)
_START_ATTEMPTS = 5
_READY_SECONDS = 60.0
_GRACE_SECONDS = 5.0


class PrometheusServer:
    """One Prometheus; `async with PrometheusServer(kubeconfig=cluster.kubeconfig) as prometheus:` starts and stops it.

    kubeconfig: the cluster whose Retinue pods are scraped; None for static targets only.
    targets: more targets, for example the gateway, the operator.
    scrape_interval: a Prometheus duration.
    state: folder for configuration, data and log; kept if given, otherwise temporary like that of ControlPlane.
    tools: what to run, by name, instead of looking it up.
    """

    def __init__(
        self,
        *,
        kubeconfig: Path | None = None,
        targets: Sequence[StaticTarget] = (),
        scrape_interval: str = "1s",
        state: Path | None = None,
        keep: bool = False,
        tools: Mapping[str, Path] | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        self._kubeconfig = kubeconfig
        self._targets = tuple(targets)
        self._scrape_interval = scrape_interval
        self._temporary = state is None and not keep
        default = Path(tempfile.gettempdir()) / f"retinue-prometheus-{secrets.token_hex(6)}"
        self.state = default if state is None else state.absolute()
        self._tools = tools
        self._reporter = reporter
        self._port: int | None = None
        self._child: ChildProcess | None = None

    @property
    def url(self) -> str:
        """The base URL, for example http://127.0.0.1:20123. The same after every later start."""
        if self._port is None:
            raise LoopbackError("Prometheus is not started", "call start() first")
        return f"http://{HOST}:{self._port}"

    @property
    def log(self) -> Path:
        """The server's log file."""
        return self.state / "logs" / "prometheus.log"

    @property
    def config_file(self) -> Path:
        """The configuration that the server reads."""
        return self.state / "prometheus.yml"

    @property
    def running(self) -> bool:
        """Whether the process runs now."""
        return self._child is not None and self._child.exit_code() is None

    async def start(self) -> None:
        """Starts the server, or starts it again on the same port with the data it had, and waits until it is ready."""
        if self.running:
            return
        tools = self._tools or await ensure_tools(("prometheus",), reporter=self._reporter)
        self._tools = tools
        self.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        config = render_config(
            kubeconfig=self._kubeconfig, targets=self._targets, scrape_interval=self._scrape_interval
        )
        self.config_file.write_text(config)
        first = self._port is None
        for attempt in range(1, _START_ATTEMPTS + 1):
            port = pick_ports(1)[0] if self._port is None else self._port
            try:
                await self._start_on(port, tools["prometheus"])
                return
            except PortTakenError:
                # Only before anybody knows the address may it change.
                if not first or attempt == _START_ATTEMPTS:
                    raise
                self._port = None
            except BaseException:
                await self._stop_child()
                raise

    async def stop(self, *, keep_logs: bool = False) -> None:
        """Stops the server in order. A temporary state folder goes, except for the log if `keep_logs`."""
        await self._stop_child()
        if self._temporary and self.state.exists():
            if keep_logs:
                shutil.rmtree(self.state / "data", ignore_errors=True)
            else:
                shutil.rmtree(self.state, ignore_errors=True)

    def kill(self, sig: signal.Signals = signal.SIGKILL) -> None:
        """Sends a signal to the server and returns at once; `start()` brings it back."""
        if self._child is not None:
            self._child.send(sig)

    async def pause(self) -> None:
        """Stops the server in order and keeps its port and data; `start()` brings it back."""
        await self._stop_child()

    async def query(self, promql: str) -> list[Sample]:
        """Evaluates an instant query now, see PrometheusApi."""
        return await self._api.query(promql)

    async def active_targets(self) -> list[dict[str, Any]]:
        """What is scraped now, see PrometheusApi."""
        return await self._api.active_targets()

    @property
    def _api(self) -> PrometheusApi:
        return PrometheusApi(self.url, f"see {self.log}")

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        failed = isinstance(error, Exception)
        await self.stop(keep_logs=failed)
        if failed and self._temporary:
            _LOGGER.warning("the log of Prometheus is kept in %s", self.log)

    async def _start_on(self, port: int, binary: Path) -> None:
        self._port = port
        self._child = ChildProcess.spawn(
            "prometheus",
            [
                str(binary),
                f"--config.file={self.config_file}",
                f"--storage.tsdb.path={self.state / 'data'}",
                "--storage.tsdb.retention.time=1d",
                # A killed server leaves a lock file behind; there is no second one on this folder.
                "--storage.tsdb.no-lockfile",
                f"--web.listen-address={HOST}:{port}",
                "--log.level=warn",
            ],
            log=self.log,
            cwd=self.state,
        )
        await wait_healthy(self._child, f"{self.url}/-/ready", timeout=_READY_SECONDS)

    async def _stop_child(self) -> None:
        if self._child is not None:
            await self._child.stop(_GRACE_SECONDS)
