"""From pods and AgentPools to the routing table: which instances may serve which role, decided without I/O."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from retinue.api import labels
from retinue_gateway.keys import PoolKey, RoleKey, Stage


@dataclass(frozen=True)
class Instance:
    """The pod of rank 0 of one engine instance.

    uid: of the pod, and so the name of its cache: a pod made again under the same name starts cold.
    routable: may get new requests (labelled so, ready, not being deleted, with an address).
    """

    uid: str
    name: str
    namespace: str
    pool: str
    stage: Stage
    address: str | None
    routable: bool

    @property
    def url(self) -> str:
        return f"http://{self.address}"


@dataclass(frozen=True)
class RoleView:
    """What an AgentPool says of one role; `served_by` names the role whose pools serve it."""

    name: str
    type: str
    model: str | None
    served_by: str | None
    wants_prefill: bool
    prefill_pool: str | None
    decode_pool: str | None


@dataclass(frozen=True)
class AgentPoolView:
    """What the gateway needs of one AgentPool; created in Unix seconds, roles in the order of the spec."""

    key: PoolKey
    created: int
    roles: tuple[RoleView, ...]


@dataclass(frozen=True)
class Route:
    """Who serves one role now: the routable instances of each stage, and the pools that they come from."""

    key: RoleKey
    type: str
    model: str | None
    disaggregated: bool
    prefill_pool: str | None
    decode_pool: str | None
    prefill: tuple[Instance, ...] = ()
    decode: tuple[Instance, ...] = ()

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (Stage.PREFILL, Stage.DECODE) if self.disaggregated else (Stage.DECODE,)

    def instances(self, stage: Stage) -> tuple[Instance, ...]:
        return self.prefill if stage is Stage.PREFILL else self.decode

    def pool_of(self, stage: Stage) -> str | None:
        return self.prefill_pool if stage is Stage.PREFILL else self.decode_pool


@dataclass(frozen=True)
class AgentPoolRoutes:
    """One AgentPool and the route of each of its roles, in the order of the spec."""

    key: PoolKey
    created: int
    roles: tuple[Route, ...]

    def find(self, model: str) -> Route | None:
        """The role of that name, or else the first that runs a model of that name."""
        by_name = (route for route in self.roles if route.key.role == model)
        by_model = (route for route in self.roles if route.model == model)
        return next(by_name, None) or next(by_model, None)


@dataclass(frozen=True)
class Directory:
    """The routing table. `instances` by uid holds all that exist, routable or not."""

    pools: Mapping[PoolKey, AgentPoolRoutes] = field(default_factory=dict)
    instances: Mapping[str, Instance] = field(default_factory=dict)
    routes: Mapping[RoleKey, Route] = field(default_factory=dict)


def read_instance(pod: Mapping[str, Any]) -> Instance | None:
    """The instance that a pod answers for, or None: a rank other than 0, a tier server, or not ours."""
    metadata = pod["metadata"]
    marks: Mapping[str, str] = metadata.get("labels") or {}
    if marks.get(labels.MANAGED_BY) != labels.RETINUE or marks.get(labels.RANK, "0") != "0":
        return None
    kind = marks.get(labels.POOL_KIND)
    if kind not in (labels.POOL_KIND_PREFILL, labels.POOL_KIND_DECODE):
        return None
    name, pool = marks.get(labels.INSTANCE), marks.get(labels.POOL)
    if not name or not pool:
        return None
    address = _address(pod)
    ready = any(
        condition.get("type") == "Ready" and condition.get("status") == "True"
        for condition in (pod.get("status") or {}).get("conditions") or ()
    )
    return Instance(
        uid=metadata["uid"],
        name=name,
        namespace=metadata["namespace"],
        pool=pool,
        stage=Stage(kind),
        address=address,
        routable=(
            ready
            and address is not None
            and marks.get(labels.ROUTABLE) == "true"
            and not metadata.get("deletionTimestamp")
        ),
    )


def read_agent_pool(found: Mapping[str, Any]) -> AgentPoolView:
    """Roles exist as soon as the spec names them; their pools are known when the status does."""
    metadata = found["metadata"]
    reported = {role["name"]: role for role in (found.get("status") or {}).get("roles") or ()}
    specified = (found.get("spec") or {}).get("roles") or ()
    return AgentPoolView(
        key=PoolKey(metadata["namespace"], metadata["name"]),
        created=int(datetime.fromisoformat(metadata["creationTimestamp"]).timestamp()),
        roles=tuple(_role(role, reported.get(role["name"], {})) for role in specified),
    )


def build_directory(pods: Iterable[Instance], agent_pools: Iterable[AgentPoolView]) -> Directory:
    """The routing table for these pods and AgentPools; instances are sorted by name."""
    ordered = sorted(pods, key=lambda instance: (instance.namespace, instance.name, instance.uid))
    by_pool: dict[tuple[str, str, Stage], list[Instance]] = {}
    for instance in ordered:
        if instance.routable:
            by_pool.setdefault((instance.namespace, instance.pool, instance.stage), []).append(instance)
    pools = {view.key: _routes(view, by_pool) for view in sorted(agent_pools, key=lambda view: view.key)}
    return Directory(
        pools=pools,
        instances={instance.uid: instance for instance in ordered},
        routes={route.key: route for pool in pools.values() for route in pool.roles},
    )


def _routes(view: AgentPoolView, by_pool: Mapping[tuple[str, str, Stage], list[Instance]]) -> AgentPoolRoutes:
    by_name = {role.name: role for role in view.roles}

    def members(pool: str | None, stage: Stage) -> tuple[Instance, ...]:
        return tuple(by_pool.get((view.key.namespace, pool, stage), ())) if pool else ()

    def route(role: RoleView) -> Route:
        source = by_name.get(role.served_by, role) if role.served_by else role
        return Route(
            key=RoleKey(view.key.namespace, view.key.name, role.name),
            type=role.type,
            model=source.model,
            disaggregated=source.wants_prefill,
            prefill_pool=source.prefill_pool,
            decode_pool=source.decode_pool,
            prefill=members(source.prefill_pool, Stage.PREFILL),
            decode=members(source.decode_pool, Stage.DECODE),
        )

    return AgentPoolRoutes(view.key, view.created, tuple(route(role) for role in view.roles))


def _role(spec: Mapping[str, Any], status: Mapping[str, Any]) -> RoleView:
    model = status.get("model") or (spec.get("model") or {}).get("name")
    return RoleView(
        name=spec["name"],
        type=spec.get("type", ""),
        model=model,
        served_by=spec.get("servedBy") or status.get("servedBy"),
        # A role that asks for prefill must not be served by its decode engines alone while the status lags behind.
        wants_prefill="prefill" in spec or "prefillPoolRef" in spec or bool(status.get("prefillPool")),
        prefill_pool=status.get("prefillPool"),
        decode_pool=status.get("decodePool"),
    )


def _address(pod: Mapping[str, Any]) -> str | None:
    """host:port of the engine: the pod's IP, and the container port named http."""
    ip = (pod.get("status") or {}).get("podIP")
    if not ip:
        return None
    ports = (
        port["containerPort"]
        for container in (pod.get("spec") or {}).get("containers") or ()
        for port in container.get("ports") or ()
        if port.get("name") == labels.HTTP_PORT_NAME
    )
    port = next(ports, labels.HTTP_PORT)
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"
