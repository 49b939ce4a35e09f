"""The laws in a closed loop with a toy cluster: sessions wait for their turn, instances take time to start."""

from dataclasses import dataclass, field
from itertools import pairwise

from retinue.autoscaling.decide import decide
from retinue.autoscaling.decision import Decision, State
from retinue.autoscaling.inputs import (
    Inputs,
    PoolInputs,
    PoolKind,
    PoolSignals,
    RoleInputs,
    RoleSignals,
    Signal,
)
from retinue.autoscaling.settings import Goals, Settings

START_UP = 60
SPEED = 10_000.0
KV_TOKENS = 1_000_000.0
SLOTS = 32.0
CONTEXT = 50_000.0
NEW_TOKENS = 5_000.0
DECODE_SECONDS = 8.0
GAP_SECONDS = 10.0
INTERVAL = 15
SETTINGS = Settings(
    evaluation_interval=INTERVAL, startup_estimate=START_UP, down_stabilization=120.0, down_interval=60.0
)


def seen(value: float) -> Signal:
    return Signal(value, 1.0)


@dataclass
class Cluster:
    """A fluid model, one second a step: sessions are idle, in prefill or in decode, in fractions if need be.

    The hit rate falls when the pool cannot hold all sessions, which makes more work: the second equilibrium.
    """

    now: float = 1_800_000_000.0
    open_sessions: float = 0.0
    idle: float = 0.0
    prefilling: float = 0.0
    decoding: float = 0.0
    born: dict[PoolKind, list[float]] = field(default_factory=dict)
    wanted: dict[PoolKind, int] = field(default_factory=dict)
    served: list[tuple[float, float]] = field(default_factory=list)
    state: State = field(default_factory=State)
    history: list[tuple[float, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.born = {kind: [self.now - 1e5] for kind in (PoolKind.PREFILL, PoolKind.DECODE)}
        self.wanted = dict.fromkeys(self.born, 1)

    def ready(self, kind: PoolKind) -> list[float]:
        """Ages since readiness."""
        return [self.now - time - START_UP for time in self.born[kind] if self.now - time >= START_UP]

    @property
    def hit_rate(self) -> float:
        if not self.open_sessions:
            return 0.9
        held = len(self.ready(PoolKind.PREFILL)) * KV_TOKENS
        return 0.9 * min(1.0, held / (self.open_sessions * CONTEXT))

    def resize_sessions(self, number: float) -> None:
        """Opens sessions, or ends idle ones first."""
        self.idle = max(0.0, self.idle + number - self.open_sessions)
        self.open_sessions = number
        if number == 0:
            self.prefilling = self.decoding = 0.0

    def second(self) -> None:
        self.now += 1.0
        work = CONTEXT * (1.0 - self.hit_rate)
        arriving = self.idle / GAP_SECONDS
        prefilled = min(self.prefilling + arriving, len(self.ready(PoolKind.PREFILL)) * SPEED / work)
        ended = min(self.decoding, len(self.ready(PoolKind.DECODE)) * SLOTS) / DECODE_SECONDS
        self.idle += ended - arriving
        self.prefilling += arriving - prefilled
        self.decoding += prefilled - ended
        self.served = [*self.served[-59:], (prefilled, arriving)]

    def observe(self) -> Inputs:
        prefilled = sum(entry[0] for entry in self.served) / max(len(self.served), 1)
        arrivals = sum(entry[1] for entry in self.served) / max(len(self.served), 1)

        def pool(kind: PoolKind, running: float) -> PoolInputs:
            ready = self.ready(kind)
            use = running * CONTEXT / (len(ready) * KV_TOKENS) if kind is PoolKind.DECODE else 0.0
            return PoolInputs(
                name="p",
                kind=kind,
                min=1,
                max=12,
                current=self.wanted[kind],
                ready_ages=tuple(ready),
                starting_ages=tuple(self.now - time for time in self.born[kind] if self.now - time < START_UP),
                kv_tokens=KV_TOKENS,
                prefill_speed=SPEED,
                slots=SLOTS,
                cost_per_hour=4.0,
                signals=PoolSignals(
                    prompt_rate=seen(prefilled * CONTEXT),
                    hit_rate=seen(self.hit_rate),
                    running=seen(min(running, len(ready) * SLOTS)),
                    running_peak=seen(min(running, len(ready) * SLOTS)),
                    waiting=seen(max(0.0, running - len(ready) * SLOTS)),
                    kv_use=seen(min(1.0, use)),
                    reporting=seen(float(len(ready))),
                ),
            )

        role = RoleSignals(
            arrivals=seen(arrivals),
            completions=seen(prefilled),
            prompt_rate=seen(prefilled * CONTEXT),
            in_flight=seen(self.prefilling + self.decoding),
            queued_prefill_tokens=seen(self.prefilling * CONTEXT),
            open_sessions=seen(self.open_sessions),
            context_tokens=seen(self.open_sessions * CONTEXT),
        )
        return Inputs(
            "agents",
            "coder",
            (RoleInputs("primary", "p", "p", signals=role),),
            (pool(PoolKind.PREFILL, self.prefilling), pool(PoolKind.DECODE, self.decoding)),
            goals=Goals(ttft=5.0, itl=0.05),
            settings=SETTINGS,
        )

    def evaluate(self) -> Decision:
        decision = decide(self.observe(), self.state, self.now)
        self.state = decision.state
        for target in decision.targets:
            change = target.desired - self.wanted[target.kind]
            if change > 0:
                self.born[target.kind].extend([self.now] * change)
            elif change < 0:
                # The youngest leave: those that do not serve yet first.
                del self.born[target.kind][change:]
            self.wanted[target.kind] = target.desired
        self.history.append((self.now, self.wanted[PoolKind.PREFILL], self.wanted[PoolKind.DECODE]))
        return decision

    def run(self, seconds: int) -> None:
        for passed in range(seconds):
            self.second()
            if passed % INTERVAL == 0:
                self.evaluate()


def test_a_step_of_load_grows_both_pools_at_once() -> None:
    cluster = Cluster()
    cluster.run(60)
    assert (cluster.wanted[PoolKind.PREFILL], cluster.wanted[PoolKind.DECODE]) == (1, 1)
    cluster.resize_sessions(100)
    cluster.run(INTERVAL * 2)
    # 100 sessions of 50,000 tokens need 5,000,000 / (1,000,000 x .8) = 7 caches.
    assert cluster.wanted[PoolKind.PREFILL] >= 7
    assert cluster.wanted[PoolKind.DECODE] >= 2


def test_a_cluster_below_its_cache_floor_gets_out_of_the_cold_equilibrium() -> None:
    cluster = Cluster()
    cluster.resize_sessions(100)
    cluster.run(600)
    assert cluster.hit_rate > 0.89
    assert cluster.prefilling * CONTEXT / SPEED / cluster.wanted[PoolKind.PREFILL] < 1.0
    assert cluster.wanted[PoolKind.PREFILL] <= 12


def test_the_end_of_the_load_shrinks_to_the_minimum_late_and_one_by_one() -> None:
    cluster = Cluster()
    cluster.resize_sessions(100)
    cluster.run(600)
    peak = cluster.wanted[PoolKind.PREFILL]
    ended = cluster.now
    cluster.resize_sessions(0)
    cluster.run(3600)
    assert (cluster.wanted[PoolKind.PREFILL], cluster.wanted[PoolKind.DECODE]) == (1, 1)
    after = [entry for entry in cluster.history if entry[0] > ended]
    assert all(entry[1] == peak for entry in after if entry[0] < ended + SETTINGS.down_stabilization)
    downs = [later[0] for earlier, later in pairwise(after) if later[1] < earlier[1]]
    assert len(downs) == peak - 1
    assert all(later[1] >= earlier[1] - 1 for earlier, later in pairwise(after))
    assert all(later - earlier >= SETTINGS.down_interval for earlier, later in pairwise(downs))


def test_sessions_that_pause_keep_their_cache() -> None:
    cluster = Cluster()
    cluster.resize_sessions(100)
    cluster.run(600)
    # All wait for a person: no request at all, but every session is still open.
    cluster.idle = cluster.prefilling = cluster.decoding = 0.0
    cluster.run(3600)
    assert cluster.wanted[PoolKind.PREFILL] == 7
    assert cluster.wanted[PoolKind.DECODE] == 1


def test_a_steady_load_settles() -> None:
    cluster = Cluster()
    cluster.resize_sessions(60)
    cluster.run(3600)
    settled = {entry[1:] for entry in cluster.history if entry[0] > cluster.now - 1200}
    assert len(settled) == 1
