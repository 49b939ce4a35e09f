"""One active operator: a Lease taken by compare-and-swap, renewed in time, and given back at a graceful stop."""

import asyncio
import datetime
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from retinue.plan import Manifest
from retinue_operator.client import KubeClient
from retinue_operator.errors import Conflict, KubeError, NotFound, one_line
from retinue_operator.fence import Fence, clock
from retinue_operator.resources import LEASE

_LOG = structlog.stdlib.get_logger(__name__)
_LATER = 0.02


class LeaseLost(Exception):
    """The lease could not be renewed in time or was taken: this process must not write any more."""


@dataclass(frozen=True)
class _Seen:
    """A version of another one's lease, and when it runs out on our own clock."""

    version: str
    until: float


@dataclass(frozen=True)
class LeaseTerms:
    """Where the lease is and its times in seconds. `renew_deadline` must leave room below `duration`.

    The holder gives up `renew_deadline` after its last renewal; others may take over `duration` after they last saw
    one, measured by their own monotonic clocks, so that wall clocks do not matter.
    """

    name: str
    namespace: str
    duration: float = 10.0
    renew_deadline: float = 7.0
    retry_period: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.retry_period < self.renew_deadline < self.duration:
            raise ValueError("the lease needs retry period < renew deadline < duration")


class Elector:
    """Takes part in the election as `holder`, and keeps `fence` open while it may write: never longer than
    `renew_deadline` after the start of the last renewal that succeeded.

    client: not behind that fence, or nobody could ever take the lease. wall: seconds since the epoch for the times in
    the Lease, which are for people only.
    """

    def __init__(
        self,
        client: KubeClient,
        terms: LeaseTerms,
        holder: str,
        now: Callable[[], float] = clock,
        *,
        fence: Fence | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._terms = terms
        self._holder = holder
        self._now = now
        self._wall = wall
        self._fence = fence or Fence(now=now)
        self._fence.close()
        self._seen: _Seen | None = None
        self._renewed: float | None = None
        self._asked: float | None = None

    @property
    def leading(self) -> bool:
        """Whether this process holds the lease."""
        return self._renewed is not None

    def renewal_age(self) -> float | None:
        """Seconds since the last renewal, None while not leading."""
        return None if self._renewed is None else self._now() - self._renewed

    def candidate_age(self) -> float | None:
        """Seconds since the API server last answered us about the lease, None before the first answer."""
        return None if self._asked is None else self._now() - self._asked

    async def acquire(self) -> None:
        """Returns once this process holds the lease with time to renew it; waits as long as another one does."""
        while True:
            if not await self._attempt():
                await asyncio.sleep(self._pause())
            elif self._fresh():
                break
        _LOG.info("lease acquired", lease=self._terms.name, holder=self._holder)

    def _pause(self) -> float:
        """Until the next try: no longer than until the lease that was seen runs out, so that nothing is wasted."""
        if self._seen is None:
            return self._terms.retry_period
        left = self._seen.until - self._now()
        return min(self._terms.retry_period, left + _LATER) if left > 0 else self._terms.retry_period

    def _fresh(self) -> bool:
        """Whether enough is left for the first renewal.

        A slow API server may have used it up for the acquisition itself, and leading would end as soon as it began.
        """
        age = self.renewal_age()
        return age is not None and age <= (self._terms.renew_deadline - self._terms.retry_period) / 2

    async def hold(self) -> None:
        """Renews the lease for ever; raises LeaseLost when that did not succeed for `renew_deadline` seconds."""
        while True:
            await asyncio.sleep(self._terms.retry_period)
            renewed = self._renewed
            if renewed is None:
                raise LeaseLost("the lease is not held")
            left = renewed + self._terms.renew_deadline - self._now()
            try:
                async with asyncio.timeout(max(left, 0.0)):
                    kept = await self._attempt()
            except TimeoutError:
                kept = False
                left = 0.0
            if self._renewed is None or (not kept and left <= self._terms.retry_period):
                self._give_up()
                raise LeaseLost(f"lease {self._terms.namespace}/{self._terms.name} could not be renewed in time")

    async def release(self) -> None:
        """Gives the lease back, so that a standby takes over at once; failing to is harmless."""
        if self._renewed is None:
            return
        self._give_up()
        try:
            async with asyncio.timeout(self._terms.retry_period):
                try:
                    await self._hand_back()
                except Conflict:
                    # A renewal of our own was still under way.
                    await self._hand_back()
        except (KubeError, TimeoutError) as error:
            _LOG.warning("lease not released", lease=self._terms.name, error=one_line(error))

    async def _hand_back(self) -> None:
        lease = await self._client.get(LEASE.kind, self._terms.namespace, self._terms.name)
        if lease["spec"].get("holderIdentity") == self._holder:
            lease["spec"] = {**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}
            await self._client.replace(lease)
            _LOG.info("lease released", lease=self._terms.name)

    def _leads(self, since: float) -> None:
        # Counted from before the request: nobody can have seen this renewal earlier.
        self._renewed = since
        self._fence.open_until(since + self._terms.renew_deadline)

    def _give_up(self) -> None:
        self._renewed = None
        self._fence.close()

    async def _attempt(self) -> bool:
        """One try to take or renew the lease; False while somebody else has it or the API server does not answer."""
        started = self._now()
        try:
            lease = await self._read_or_create()
            self._asked = self._now()
            if lease is None:
                self._leads(started)
                return True
            holder = lease["spec"].get("holderIdentity") or ""
            if holder != self._holder and (self.leading or not self._free(lease, holder)):
                # If it was ours, somebody took it while we could not renew.
                self._give_up()
                return False
            lease["spec"] = self._terms_spec(lease["spec"], holder)
            await self._client.replace(lease)
        except KubeError as error:
            _LOG.warning("lease not updated", lease=self._terms.name, error=one_line(error))
            return False
        self._leads(started)
        return True

    async def _read_or_create(self) -> Manifest | None:
        try:
            return await self._client.get(LEASE.kind, self._terms.namespace, self._terms.name)
        except NotFound:
            metadata = {"name": self._terms.name, "namespace": self._terms.namespace}
            spec = self._terms_spec({}, "")
            await self._client.create(
                {"apiVersion": LEASE.api_version, "kind": LEASE.kind, "metadata": metadata, "spec": spec}
            )
            return None

    def _free(self, lease: Manifest, holder: str) -> bool:
        if not holder:
            return True
        version, now = lease["metadata"]["resourceVersion"], self._now()
        if self._seen is None or self._seen.version != version:
            # Not judged by the times in the lease: its holder's clock may be hours away from ours.
            self._seen = _Seen(version, now + float(lease["spec"].get("leaseDurationSeconds") or 0))
            return False
        return now > self._seen.until

    def _terms_spec(self, before: Manifest, holder: str) -> Manifest:
        now = datetime.datetime.fromtimestamp(self._wall(), datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        taken = holder != self._holder
        return {
            **before,
            "holderIdentity": self._holder,
            "leaseDurationSeconds": max(1, round(self._terms.duration)),
            "acquireTime": now if taken else before.get("acquireTime", now),
            "renewTime": now,
            "leaseTransitions": int(before.get("leaseTransitions") or 0) + (1 if taken and before else 0),
        }
