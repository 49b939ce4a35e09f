"""What the user asks of the autoscaler, and the constants of its laws."""

from dataclasses import dataclass

from retinue.api.agentgoals import AutoscalingMode, OnMissingUp


@dataclass(frozen=True)
class Goals:
    """Latency goals in seconds at their quantiles."""

    ttft: float = 2.0
    itl: float = 0.05


@dataclass(frozen=True)
class CacheGoals:
    """The cache policy as numbers: recorded with each decision, so that a law that prices the cache can be replayed."""

    target_hit_rate: float = 0.95
    hit_discount: float = 0.9
    write_premium: float = 1.0


@dataclass(frozen=True)
class Settings:
    """The AgentPool's autoscaling block, durations in seconds."""

    mode: AutoscalingMode = AutoscalingMode.AUTO
    evaluation_interval: float = 15.0
    metrics_window: float = 60.0
    startup_estimate: float = 180.0
    down_stabilization: float = 300.0
    down_interval: float = 120.0
    missing_up: OnMissingUp = OnMissingUp.LAST_GOOD
    max_age: float = 120.0

    @property
    def fresh_age(self) -> float:
        """Up to this age a number is as good as new: rates still span the window that they were asked for."""
        return min(self.max_age, max(self.metrics_window, 2 * self.evaluation_interval))


@dataclass(frozen=True)
class Tuning:
    """The constants of the law. They are part of the inputs, so that a recorded decision replays after they change.

    "evidence" is the independent replay that the design refers to (notes/autoscaling-evidence.md).
    """

    prefill_utilization: float = 0.35
    """Mean utilisation of warm prefill instances to size for: at 20-40 % the tail already misses (evidence 9)."""
    decode_slots_use: float = 0.8
    decode_kv_use: float = 0.7
    mixed_utilization: float = 0.7
    """Prefill and decode load of an aggregated instance together."""
    upstream_share: float = 0.7
    """Share of the requests still in prefill that will decode at the same time (evidence 8)."""
    cache_fill: float = 0.8
    """Share of an instance's KV tokens that sessions may fill: sticky sessions do not spread evenly."""
    tier_fill: float = 0.9
    starting_credit: float = 0.8
    """What a starting or just ready instance counts against a warm one; grows to 1 over the warm-up (evidence 6)."""
    warm_up: float = 2.0
    """Length of the warm-up after readiness, in start-up estimates."""
    catch_up: float = 0.5
    """Time in which a backlog is to be worked off, in start-up estimates; never less than the TTFT goal."""
    collapse_limit: float = 3.0
    """A miss rate above this many times the remembered one is taken for overload and not believed (evidence 5)."""
    memory: float = 10.0
    """Time constant of the remembered hit rate, in metrics windows."""
    speed_low: float = 0.5
    speed_high: float = 2.0
    """Bounds of the measured prefill speed in modelled ones: requests that share a batch each count its time."""
    latency_step: float = 0.25
    """Growth for a missed latency goal that no other term explains, as a share of the pool; at least one instance."""
    latency_slack: float = 0.8
    """A pool shrinks only while its latency is below this share of the goal."""
    down_tolerance: float = 0.1
    """A pool shrinks only if what stays is this much more than needed."""
