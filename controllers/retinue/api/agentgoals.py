"""What an AgentPool asks for: cache policy, latency goals, how its size follows them, and what it may cost."""

from enum import StrEnum

from pydantic import Field

from retinue.api.types import Decimal, Duration, Model, Ratio, TokenCount


class AutoscalingMode(StrEnum):
    OFF = "Off"
    DRY_RUN = "DryRun"
    AUTO = "Auto"


class OnMissingUp(StrEnum):
    LAST_GOOD = "LastGood"
    HOLD = "Hold"


class OnMissingDown(StrEnum):
    HOLD = "Hold"


class Compaction(Model):
    """When the harness compacts a session's context, and down to how much."""

    trigger: Ratio = "0.75"
    """Share of the context window at which the harness compacts. Documents the harness; this version does not act on
    it."""
    target: TokenCount = "20k"
    """Tokens that are left after a compaction. Documents the harness; this version does not act on it."""


class CachePolicy(Model):
    """What a cached token is worth, and how many of them are wanted."""

    target_hit_rate: Ratio = "0.95"
    """Wanted token-weighted hit rate (cached prompt tokens / prompt tokens). Recorded with every decision for replay;
    pools are sized by the hit rate that is measured, not by this one."""
    compaction: Compaction = Field(default_factory=Compaction)
    """When and how far the agents' harness compacts a context."""
    hit_discount: Ratio = "0.9"
    """Discount on the price of a cached prompt token, such as 0.9 for 90 % off. Enters status.inputCostRatio."""
    write_premium: Decimal = "1.0"
    """Price of an uncached prompt token relative to the list price; some providers charge 1.25 for a cache write.
    Enters status.inputCostRatio."""


class LatencyTarget(Model):
    """A latency that a share of the requests must stay below."""

    quantile: Ratio = "0.95"
    """Share of the requests that must meet the target; the quantile that is measured and shown in status."""
    target: Duration
    """The latency to stay below."""


class SLO(Model):
    """Latency goals of the whole AgentPool, measured at the gateway (TTFT) and at the engines (ITL)."""

    ttft: LatencyTarget = Field(default_factory=lambda: LatencyTarget(target="2s"))
    """Time to first token: from the request's arrival at the gateway. A miss grows the pool whose stage is slowest."""
    itl: LatencyTarget = Field(default_factory=lambda: LatencyTarget(target="50ms"))
    """Inter-token latency: time between output tokens. Bounds the batch that a decode instance is trusted with."""
    attainment: Ratio = "0.99"
    """Share of the time in which the goals are to be met. Kept for reports; this version does not act on it."""


class OnMissingMetrics(Model):
    """What may happen while a signal is missing or older than maxAge. Nothing ever shrinks on ignorance."""

    scale_up: OnMissingUp = OnMissingUp.LAST_GOOD
    """LastGood grows on the last value that was fresh, until it is older than maxAge. Hold does not grow."""
    scale_down: OnMissingDown = OnMissingDown.HOLD
    """Hold, the only value: nothing shrinks without fresh metrics."""
    max_age: Duration = "2m"
    """Age from which the last good value of a signal counts as missing."""


class ScaleDown(Model):
    """Late and one instance at a time: a shrink throws warm cache away."""

    stabilization: Duration = "5m"
    """A pool or tier shrinks only to what was enough during all of this time."""
    interval: Duration = "2m"
    """Least time between two instances that leave the same pool or tier."""


class Autoscaling(Model):
    """How the sizes of the AgentPool's own pools and tiers follow the load."""

    mode: AutoscalingMode = AutoscalingMode.AUTO
    """Auto writes replicas. DryRun only shows in status.lastDecision what Auto would write. Off leaves replicas to you,
    to kubectl scale, HPA or KEDA. Off must be quoted ("Off"): YAML reads an unquoted Off as false."""
    evaluation_interval: Duration = "15s"
    """Time between two decisions."""
    metrics_window: Duration = "1m"
    """Window of the rates and quantiles that Prometheus is asked for. At least four scrape intervals."""
    startup_estimate: Duration = "3m"
    """Time from the creation of an instance until it serves. Sets how fast a backlog is worked off, and for how long a
    new instance counts for less than a warm one."""
    scale_down: ScaleDown = Field(default_factory=ScaleDown)
    """How slowly pools and tiers shrink."""
    on_missing_metrics: OnMissingMetrics = Field(default_factory=OnMissingMetrics)
    """What is done while Prometheus has no fresh answer."""


class Budget(Model):
    """What the AgentPool's own pools and tiers may cost together."""

    max_cost_per_hour: Decimal
    """Limit per hour, in the currency of NodeClass costPerNodeHour. Minimums are kept even above it. A pool whose cost
    is unknown does not grow under a budget."""
