"""What the demo needs of the cluster that it runs on, whether its nodes are emulated or a kubelet's."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from retinue_emulator.loopback import ClusterAccess

from .watch import ApiReader, Asked


class Ground(Protocol):
    """A cluster with Retinue on it for the length of an `async with` block."""

    @property
    def access(self) -> ClusterAccess:
        """kubectl for the cluster."""
        ...

    @property
    def api(self) -> ApiReader:
        """How to read the API server."""
        ...

    @property
    def prometheus(self) -> Asked:
        """The Prometheus that the operator asks."""
        ...

    @property
    def gateway_url(self) -> str:
        """The gateway's base URL."""
        ...

    @property
    def logs(self) -> Path:
        """Where logs are."""
        ...

    @property
    def logs_kept(self) -> bool:
        """Whether they are still there after the stop."""
        ...

    @property
    def engine_args(self) -> tuple[str, ...]:
        """Arguments that engines need because their node does not tell them how fast to run."""
        ...

    async def behind(self) -> str | None:
        """Why the emulator's numbers are not to be trusted; None while it keeps up."""
        ...

    async def decisions(self) -> str:
        """The operator's record of autoscaling decisions, one JSON line each."""
        ...

    async def run_until_failure(self) -> None:
        """Returns never; raises LoopbackError as soon as something of it has failed."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...
