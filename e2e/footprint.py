"""What the operator takes: memory and CPU of its processes, and requests to the API server."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

from retinue_emulator.loopback.audit import WRITE_VERBS, read_events

from .prometheus import Prometheus
from .world import World


@dataclass(frozen=True)
class Footprint:
    """Of all operator pods together, over a window."""

    memory: float
    """Most resident bytes of one pod at one time."""
    cpu: float
    """Seconds of CPU a second, the pods added up."""
    seconds: float


def footprint(server: Prometheus, pods: set[str], seconds: float) -> Footprint:
    """The last `seconds` as Prometheus has scraped them."""
    selector, window = f'{{pod=~"{"|".join(sorted(pods))}"}}', f"[{max(int(seconds), 5)}s]"
    return Footprint(
        memory=_value(server, f"max(max_over_time(process_resident_memory_bytes{selector}{window}))"),
        cpu=_value(server, f"sum(rate(process_cpu_seconds_total{selector}{window}))"),
        seconds=seconds,
    )


@dataclass(frozen=True)
class Asked:
    """A kind of request in the API server's audit log."""

    account: str
    verb: str
    resource: str

    @property
    def is_write(self) -> bool:
        """Whether it changed something, or tried to."""
        return self.verb in WRITE_VERBS


def asked(world: World, since: float, until: float) -> Counter[Asked]:
    """Requests of the release's accounts between two times (whole seconds), by the audit log; nothing without one.

    A watch counts when it begins. Reads are there as far as the policy of the cluster records them.
    """
    if world.kind is None:
        return Counter()
    prefix = f"system:serviceaccount:{world.release.namespace}:"
    first, last = _time(since), _time(until)
    return Counter(
        Asked(event.user.removeprefix(prefix), event.verb, event.resource)
        for event in read_events(world.kind.audit_log, reads=True)
        if event.user.startswith(prefix) and first <= event.time < last
    )


def _value(server: Prometheus, promql: str) -> float:
    (series,) = server.query(promql)
    return float(series["value"][1])


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
