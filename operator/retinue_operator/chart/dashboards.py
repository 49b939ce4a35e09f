"""The Grafana dashboards: cluster, AgentPool, pool, tier and decisions, as compact tables of panels."""

from retinue_operator.chart.grafana import Dashboard, Panel, render

_POOLS = 'namespace="$namespace",agent_pool="$agent_pool"'
_POOL = 'namespace="$namespace",pool="$pool"'
_TIER = 'namespace="$namespace",tier="$tier"'
_NAMESPACE = ("namespace", "label_values(retinue_operator_condition, namespace)")
_AGENT_POOL = (
    "agent_pool",
    'label_values(retinue_operator_target_hit_rate_ratio{namespace="$namespace"}, agent_pool)',
)


def _quantile(q: float, histogram: str, selector: str, by: str) -> str:
    rates = f"sum by ({by}, le) (rate({histogram}_bucket{{{selector}}}[$__rate_interval]))"
    return f"histogram_quantile({q}, {rates})"


DASHBOARDS = (
    Dashboard(
        "cluster",
        "Retinue / Cluster",
        (),
        (
            Panel(
                "Not Ready",
                (
                    (
                        "{{kind}} {{namespace}}/{{name}}: {{reason}}",
                        'retinue_operator_condition{type="Ready",status!="True"}',
                    ),
                ),
                text="Objects whose condition Ready is not True.",
            ),
            Panel("Leader", (("{{pod}}", "retinue_operator_leader"),), text="1 for the pod that holds the lease."),
            Panel("Devices", (("{{node_class}} {{state}}", "retinue_operator_node_class_devices"),)),
            Panel("Cost per hour", (("{{namespace}}/{{agent_pool}}", "retinue_operator_cost_per_hour"),)),
            Panel(
                "Hit rate",
                (("{{namespace}}/{{agent_pool}}", "retinue_operator_hit_rate_ratio"),),
                "percentunit",
                "Cached prompt tokens / prompt tokens.",
            ),
            Panel(
                "Reconciles",
                (
                    (
                        "{{kind}} {{result}}",
                        "sum by (kind, result) (rate(retinue_operator_reconciles_total[$__rate_interval]))",
                    ),
                ),
                "ops",
            ),
            Panel(
                "Queue latency",
                (("p99", _quantile(0.99, "retinue_operator_queue_latency_seconds", "", "job")),),
                "s",
                "From due to the start of a reconcile.",
            ),
            Panel(
                "API requests",
                (
                    (
                        "{{verb}} {{code}}",
                        "sum by (verb, code) (rate(retinue_operator_api_requests_total[$__rate_interval]))",
                    ),
                ),
                "ops",
            ),
        ),
    ),
    Dashboard(
        "agentpool",
        "Retinue / AgentPool",
        (_NAMESPACE, _AGENT_POOL),
        (
            Panel(
                "Hit rate and its target",
                (
                    ("hit rate", f"retinue_operator_hit_rate_ratio{{{_POOLS}}}"),
                    ("target", f"retinue_operator_target_hit_rate_ratio{{{_POOLS}}}"),
                ),
                "percentunit",
            ),
            Panel(
                "Latency and its goals",
                (
                    ("{{slo}}", f"retinue_operator_slo_latency_seconds{{{_POOLS}}}"),
                    ("goal {{slo}} q{{quantile}}", f"retinue_operator_slo_target_seconds{{{_POOLS}}}"),
                ),
                "s",
            ),
            Panel(
                "Time to first token at the gateway",
                (("{{role}} p95", _quantile(0.95, "retinue_gateway_time_to_first_token_seconds", _POOLS, "role")),),
                "s",
            ),
            Panel("Open sessions", (("{{role}}", f"sum by (role) (retinue_gateway_open_sessions{{{_POOLS}}})"),)),
            Panel(
                "Prompt tokens",
                (
                    ("all", f"sum(rate(retinue_gateway_prompt_tokens_total{{{_POOLS}}}[$__rate_interval]))"),
                    ("cached", f"sum(rate(retinue_gateway_cached_tokens_total{{{_POOLS}}}[$__rate_interval]))"),
                ),
                "ops",
            ),
            Panel(
                "Answers by status",
                (("{{code}}", f"sum by (code) (rate(retinue_gateway_requests_total{{{_POOLS}}}[$__rate_interval]))"),),
                "reqps",
            ),
            Panel(
                "Instances",
                (
                    (
                        "{{pool_kind}} {{pool}} {{state}}",
                        f'retinue_operator_pool_instances{{{_POOLS},state=~"desired|ready"}}',
                    ),
                ),
            ),
            Panel(
                "Cost per hour and its limit",
                (
                    ("cost", f"retinue_operator_cost_per_hour{{{_POOLS}}}"),
                    ("limit", f"retinue_operator_budget_max_cost_per_hour{{{_POOLS}}}"),
                ),
            ),
        ),
    ),
    Dashboard(
        "pool",
        "Retinue / Pool",
        (_NAMESPACE, ("pool", 'label_values(retinue_operator_pool_instances{namespace="$namespace"}, pool)')),
        (
            Panel(
                "Instances by state",
                (("{{pool_kind}} {{state}}", f"retinue_operator_pool_instances{{{_POOL}}}"),),
            ),
            Panel(
                "Conditions that are not True",
                (
                    (
                        "{{kind}} {{type}}: {{reason}}",
                        'retinue_operator_condition{namespace="$namespace",name="$pool",status!="True"}',
                    ),
                ),
            ),
            Panel(
                "Requests running and waiting",
                (
                    ("{{retinue_instance}} running", f"vllm:num_requests_running{{{_POOL}}}"),
                    ("{{retinue_instance}} waiting", f"vllm:num_requests_waiting{{{_POOL}}}"),
                ),
                text="Engines that speak vLLM's metric names.",
            ),
            Panel("KV cache use", (("{{retinue_instance}}", f"vllm:kv_cache_usage_perc{{{_POOL}}}"),), "percentunit"),
            Panel(
                "Prompt tokens by source",
                (
                    (
                        "{{source}}",
                        f"sum by (source) (rate(vllm:prompt_tokens_by_source_total{{{_POOL}}}[$__rate_interval]))",
                    ),
                ),
                "ops",
            ),
            Panel(
                "Time between tokens",
                (("p95", _quantile(0.95, "vllm:inter_token_latency_seconds", _POOL, "pool")),),
                "s",
            ),
            Panel(
                "Time in queue",
                (("p95", _quantile(0.95, "vllm:request_queue_time_seconds", _POOL, "pool")),),
                "s",
            ),
            Panel("KV transfer", (("p95", _quantile(0.95, "vllm:nixl_xfer_time_seconds", _POOL, "pool")),), "s"),
        ),
    ),
    Dashboard(
        "tier",
        "Retinue / KV cache tier",
        (_NAMESPACE, ("tier", 'label_values(retinue_operator_tier_capacity_bytes{namespace="$namespace"}, tier)')),
        (
            Panel("Fill", (("fill", f"retinue_operator_tier_fill_ratio{{{_TIER}}}"),), "percentunit"),
            Panel("Capacity", (("capacity", f"retinue_operator_tier_capacity_bytes{{{_TIER}}}"),), "bytes"),
            Panel(
                "Age of what is evicted, and the tool gap to survive",
                (
                    ("eviction age", f"retinue_operator_tier_eviction_age_seconds{{{_TIER}}}"),
                    ("tool gap", f"retinue_operator_tier_retention_seconds{{{_TIER}}}"),
                ),
                "s",
                "Blocks that go before the tool gap is over are computed again.",
            ),
            Panel(
                "Tokens asked for and found",
                (
                    ("asked for", f"sum(rate(retinue_tier_lookup_tokens_total{{{_TIER}}}[$__rate_interval]))"),
                    ("found", f"sum(rate(retinue_tier_hit_tokens_total{{{_TIER}}}[$__rate_interval]))"),
                ),
                "ops",
            ),
            Panel(
                "Bytes by server",
                (("{{pod}}", f"master_allocated_bytes{{{_TIER}}}"),),
                "bytes",
            ),
        ),
    ),
    Dashboard(
        "decisions",
        "Retinue / Decisions",
        (_NAMESPACE, _AGENT_POOL),
        (
            Panel(
                "Replicas that the last decision wants",
                (("{{pool_kind}} {{pool}}", f"retinue_operator_desired_replicas{{{_POOLS}}}"),),
            ),
            Panel(
                "Instances that serve",
                (("{{pool_kind}} {{pool}}", f'retinue_operator_pool_instances{{{_POOLS},state="ready"}}'),),
            ),
            Panel(
                "Evaluations by reason",
                (
                    (
                        "{{reason}}",
                        f"sum by (reason) (rate(retinue_operator_decisions_total{{{_POOLS}}}[$__rate_interval]))",
                    ),
                ),
                "ops",
            ),
            Panel(
                "Limits that changed a decision",
                (
                    (
                        "{{reason}}",
                        f"sum by (reason) (rate(retinue_operator_decision_clamps_total{{{_POOLS}}}[$__rate_interval]))",
                    ),
                ),
                "ops",
            ),
            Panel(
                "Scaling limited, metrics fresh",
                (
                    (
                        "{{type}} {{status}}: {{reason}}",
                        'retinue_operator_condition{kind="AgentPool",namespace="$namespace",name="$agent_pool",'
                        'type=~"ScalingLimited|MetricsFresh"}',
                    ),
                ),
            ),
        ),
    ),
)


def files() -> dict[str, str]:
    """JSON text of every dashboard by file name."""
    return {f"{board.name}.json": render(board) for board in DASHBOARDS}
