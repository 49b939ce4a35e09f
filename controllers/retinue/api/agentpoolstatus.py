"""The status of an AgentPool: who serves each role, sessions, cache, cost, latency and the last decision."""

from typing import Annotated

from pydantic import Field

from retinue.api.agentgoals import AutoscalingMode
from retinue.api.agentrole import RoleType
from retinue.api.markers import ListMap
from retinue.api.types import Condition, Duration, Model, Ratio


class RoleStatus(Model):
    """Who serves a role: what a gateway needs to route."""

    name: Annotated[str, Field(max_length=40)]
    """The role's name in spec.roles."""
    type: RoleType
    """The role's type in spec.roles."""
    model: Annotated[str, Field(max_length=128)] | None = None
    """Name of the model that answers."""
    served_by: Annotated[str, Field(max_length=40)] | None = None
    """The role whose pools serve this one; absent when it has its own."""
    prefill_pool: Annotated[str, Field(max_length=63)] | None = None
    """Name of the PrefillPool; absent when the decode engines prefill too."""
    decode_pool: Annotated[str, Field(max_length=63)] | None = None
    """Name of the DecodePool."""
    ready: bool = False
    """Whether each of its pools is Ready and has a ready instance."""
    hit_rate: Ratio | None = None
    """Cached prompt tokens / prompt tokens of the role's requests over spec.autoscaling.metricsWindow. Absent without
    traffic or metrics."""
    prefill_replicas: int | None = None
    """Ready instances of the PrefillPool."""
    decode_replicas: int | None = None
    """Ready instances of the DecodePool."""


class Endpoint(Model):
    """Where clients reach a role."""

    role: Annotated[str, Field(max_length=40)]
    """The role's name in spec.roles."""
    url: Annotated[str, Field(max_length=512)]
    """Base URL of the gateway's OpenAI-compatible API for this AgentPool."""
    model: Annotated[str, Field(max_length=128)]
    """Value of model in requests to the role."""


class SessionsStatus(Model):
    """The sessions that are open, as the gateway counts them."""

    open: int | None = None
    """Open sessions of all roles. Absent without metrics."""
    context_tokens: int | None = None
    """Tokens that the contexts of all open sessions hold together. Absent without metrics."""


# Everything that a law reads of eight roles with two pools each and of their tiers.
MOST_INPUTS = 384


class DecisionInput(Model):
    """One number that the decision read."""

    name: Annotated[str, Field(max_length=128)]
    """Whose number and which, such as prefill/coder-primary/hit_rate."""
    value: Annotated[str, Field(max_length=64)] | None = None
    """The number with four digits. Absent when it was missing, and when nothing happened that could be measured."""
    age_seconds: Annotated[str, Field(max_length=16)] | None = None
    """Whole seconds since it was measured. Absent when it was missing."""


class DecisionTarget(Model):
    """What the decision says of one pool or tier."""

    name: Annotated[str, Field(max_length=128)]
    """Kind and name, such as decode/coder-primary or tier/coder-shared."""
    current: int
    """Replicas when the decision was made."""
    desired: int
    """Replicas that the decision wants."""
    reason: Annotated[str, Field(max_length=64)]
    """Why: one of the reasons of the reference."""
    message: Annotated[str, Field(max_length=512)] = ""
    """The arithmetic behind the reason."""
    clamps: Annotated[list[Annotated[str, Field(max_length=128)]], Field(max_length=8)] = Field(default_factory=list)
    """Limits that changed what the load asked for: bounds, free devices, budget."""


class LastDecision(Model):
    """One evaluation of the autoscaler: inputs, results and reasons. Renewed only when something in it changes."""

    time: Annotated[str, Field(max_length=40)]
    """When it was made, RFC 3339 in UTC."""
    mode: AutoscalingMode
    """The mode at that time: only Auto carries a decision out."""
    reason: Annotated[str, Field(max_length=64)]
    """Why, in one word: one of the reasons of the reference."""
    message: Annotated[str, Field(max_length=1024)] = ""
    """What moves and why, in a sentence."""
    targets: Annotated[list[DecisionTarget], ListMap(), Field(max_length=32)] = Field(default_factory=list)
    """The result per pool and tier. Empty in mode Off."""
    inputs: Annotated[list[DecisionInput], ListMap(), Field(max_length=MOST_INPUTS)] = Field(default_factory=list)
    """The numbers that were read."""


class AgentPoolStatus(Model):
    """What the operator observes of an AgentPool; only the operator writes it."""

    observed_generation: int | None = None
    """Generation of the spec that this status is about."""
    roles: Annotated[list[RoleStatus], ListMap(), Field(max_length=8)] = Field(default_factory=list)
    """Who serves each role, in the order of the spec."""
    roles_ready: Annotated[str, Field(max_length=16)] | None = None
    """Ready roles of all roles, such as 2/3."""
    sessions: SessionsStatus = Field(default_factory=SessionsStatus)
    """Sessions that are open."""
    hit_rate: Ratio | None = None
    """Cached prompt tokens / prompt tokens of all roles together. Absent without traffic or metrics."""
    input_cost_ratio: Annotated[str, Field(max_length=16)] | None = None
    """Cost of the prompts relative to no cache: (1 - hitRate) * writePremium + hitRate * (1 - hitDiscount)."""
    cost_per_hour: Annotated[str, Field(max_length=24)] | None = None
    """Cost of all instances and tier servers that the AgentPool owns, draining ones included. Absent when the cost of
    one is unknown."""
    ttft_p95: Annotated[Duration | None, Field(alias="ttftP95")] = None
    """Time to first token of the slowest role at the gateway, at the quantile of spec.slo.ttft (0.95 unless set)."""
    itl_p95: Annotated[Duration | None, Field(alias="itlP95")] = None
    """Inter-token latency of the slowest decode pool, at the quantile of spec.slo.itl (0.95 unless set)."""
    endpoints: Annotated[list[Endpoint], ListMap(("role",)), Field(max_length=8)] = Field(default_factory=list)
    """Where clients reach each role."""
    last_decision: LastDecision | None = None
    """The autoscaler's newest decision."""
    conditions: Annotated[list[Condition], ListMap(("type",)), Field(max_length=16)] = Field(default_factory=list)
    """Ready, Valid, ScalingLimited and MetricsFresh, and Degraded when something is wrong. The reference says what
    types and reasons mean."""
