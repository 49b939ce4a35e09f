"""What can be configured: from flags, then the environment (RETINUE_GATEWAY_*), then these defaults."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from retinue_gateway.callers import CacheIsolation
from retinue_gateway.headers import never_forwarded


class LogFormat(StrEnum):
    JSON = "json"
    TEXT = "text"


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def _split(value: object) -> object:
    """Lets a list be written as `a,b` in the environment, where pydantic-settings would want JSON."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _lower(value: object) -> object:
    names = _split(value)
    return tuple(str(name).lower() for name in names) if isinstance(names, (tuple, list)) else names


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Headers = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_lower)]
Seconds = Annotated[float, Field(gt=0)]
Delay = Annotated[float, Field(ge=0)]


class GatewaySettings(BaseSettings):
    """All times are wall-clock seconds, all sizes bytes unless the name says tokens."""

    model_config = SettingsConfigDict(env_prefix="RETINUE_GATEWAY_", extra="forbid", frozen=True)

    kubeconfig: Path | None = None
    """Without it: the service account of the pod."""
    namespaces: Names = ()
    """Namespaces to serve; empty means all, which needs a ClusterRole."""

    host: str = "0.0.0.0"
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    admin_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """Port of /livez, /readyz and /metrics; without it they are served on `port`."""
    admin_host: str | None = None
    """Address of that port; without it `host`."""

    tls_cert_file: Path | None = None
    """PEM file of the API port's certificate chain; without it plain HTTP. This file and all below are read again when
    they change."""
    tls_key_file: Path | None = None
    tokens_file: Path | None = None
    """YAML file of tenants, their bearer tokens and namespaces; without it everybody may call everything."""
    admin_tls_cert_file: Path | None = None
    """The same as tls_cert_file for a port of its own for metrics and probes."""
    admin_tls_key_file: Path | None = None
    metrics_token_file: Path | None = None
    """File of bearer tokens, one per line, of those who may read /metrics; probes need none."""
    engine_token_file: Path | None = None
    """File with the bearer token that the gateway sends to engines with API keys. A client's own is never passed on."""
    cache_isolation: CacheIsolation = CacheIsolation.TENANT
    """Between whom no cached prefix is ever a hit."""

    session_headers: Headers = (
        "x-session-id",
        "x-dynamo-session-id",
        "x-claude-code-agent-id",
        "x-claude-code-session-id",
        "session-id",
    )
    """The first of these that a request carries names its session. An agent id stands before the id of its run, because
    a sub-agent sends both."""
    parent_session_headers: Headers = (
        "x-parent-session-id",
        "x-dynamo-parent-session-id",
        "x-claude-code-parent-agent-id",
        "x-claude-code-session-id",
    )
    """The first of these whose value is not the session itself names its parent."""
    final_session_headers: Headers = ("x-session-final", "x-dynamo-session-final")
    """`true` in any of these ends the session with this request."""
    forward_headers: Headers = ("x-request-id", "traceparent", "tracestate")
    """Headers that engines get besides the session headers."""

    session_idle_timeout: Seconds = 900.0
    """A session without a request for so long is no longer open."""
    session_memory: Delay = 14400.0
    """How much longer the place of its cache is remembered, for a session that comes back."""
    max_sessions: Annotated[int, Field(ge=1)] = 100_000

    max_body_bytes: Annotated[int, Field(ge=1024)] = 64 * 1024 * 1024
    max_held_body_bytes: Annotated[int, Field(ge=1024)] = 256 * 1024 * 1024
    """Bodies of all requests under way; a body is held until its request ends, because it may have to be sent again."""
    max_in_flight: Annotated[int, Field(ge=1)] = 4096
    """Requests under way, of all."""
    max_in_flight_per_tenant: Annotated[int, Field(ge=1)] | None = None
    """Requests under way of one tenant; without authentication, of one namespace."""
    max_connections: Annotated[int, Field(ge=1)] = 8192
    """Connections to one port."""
    client_idle_timeout: Seconds = 75.0
    """A connection that has brought no complete request head for so long, since it was opened or since its last answer,
    is closed. More than a proxy's own idle time, which is often 60 s."""
    client_body_timeout: Seconds = 60.0
    """A request's body must have come within so long."""
    client_write_timeout: Seconds = 60.0
    """A client that does not take what waits for it within so long is cut off."""
    queue_timeout: Delay = 60.0
    """How long a request waits for an instance that can take it (scale from zero, rollout)."""
    max_waiting: Annotated[int, Field(ge=0)] = 1000
    """Requests that may wait so at the same time; more are refused at once."""
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 8
    """Attempts per request, all before its first token."""
    connect_timeout: Seconds = 5.0
    upstream_idle_timeout: Seconds = 900.0
    """An engine that sends nothing for so long is given up."""

    context_weight: Annotated[float, Field(ge=0)] = 0.25
    """What one token of an open session's context on an instance counts against one queued token, for a new session."""
    parent_slack_tokens: Annotated[int, Field(ge=0)] = 32_768
    """A sub-agent starts on its parent's instance unless its queue is longer than the shortest by more than this."""
    spill_queue_tokens: Annotated[int, Field(ge=1)] | None = None
    """Move a session off its instance when this many tokens are queued there; off by default, because a move recomputes
    the session's whole context."""

    latency_scale: Annotated[float, Field(gt=0)] = 1.0
    """Divides the bucket bounds of latency histograms: set it to the emulator's speed when that runs faster than real
    time. The observed values stay wall-clock seconds."""

    shutdown_delay: Delay = 0.0
    """After SIGTERM: not ready, but still accepting, until load balancers have noticed."""
    shutdown_grace: Delay = 600.0
    """Then: no new requests, running streams may finish for so long."""

    log_level: LogLevel = LogLevel.INFO
    log_format: LogFormat = LogFormat.JSON

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for certificate, key in (("tls_cert_file", "tls_key_file"), ("admin_tls_cert_file", "admin_tls_key_file")):
            if (getattr(self, certificate) is None) != (getattr(self, key) is None):
                raise ValueError(f"{certificate} and {key} go together")
        if self.admin_port is None and (self.admin_tls_cert_file or self.admin_host):
            raise ValueError("admin_tls_cert_file and admin_host need an admin_port")
        if self.max_held_body_bytes < self.max_body_bytes:
            raise ValueError("max_held_body_bytes must be at least max_body_bytes")
        read = self.session_headers + self.parent_session_headers + self.final_session_headers
        if refused := never_forwarded({*read, *self.forward_headers}):
            raise ValueError(
                f"{', '.join(refused)} must not reach engines; for engines with API keys: engine_token_file"
            )
        return self
