"""The labels and annotations that Retinue writes: part of the API, because routers and dashboards select on them."""

MANAGED_BY = "app.kubernetes.io/managed-by"
RETINUE = "retinue"

AGENT_POOL = "retinue.dev/agent-pool"
ROLE = "retinue.dev/role"
POOL = "retinue.dev/pool"
POOL_KIND = "retinue.dev/pool-kind"
TIER = "retinue.dev/tier"
INSTANCE = "retinue.dev/instance"
RANK = "retinue.dev/rank"
REVISION = "retinue.dev/revision"
NODE_CLASS = "retinue.dev/node-class"
ROUTABLE = "retinue.dev/routable"

POOL_KIND_PREFILL = "prefill"
POOL_KIND_DECODE = "decode"
POOL_KIND_TIER = "tier"

# Annotations
SPEC_HASH = "retinue.dev/spec-hash"
DOMAIN = "retinue.dev/domain"
DRAIN_STARTED = "retinue.dev/drain-started"
TEMPLATE = "retinue.dev/template"
FAULT = "retinue.dev/fault"
# On a pool or tier that an AgentPool made: its replicas have been written once, so they are not the schema's default.
SIZED = "retinue.dev/sized"
# On a NodeClass: its nodes are emulated and run at this many times real speed.
TIME_SCALE = "retinue.dev/time-scale"

PLACEMENT_GATE = "retinue.dev/placement"
ENGINE_CONTAINER = "engine"
TIER_CONTAINER = "tier"
# The claim of an engine pod for its devices, where the node class hands them out by DRA.
DEVICES_CLAIM = "devices"
HTTP_PORT_NAME = "http"
HTTP_PORT = 8000
