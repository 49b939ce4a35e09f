"""What can be configured: from flags, then the environment (RETINUE_GATEWAY_*), then these defaults."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


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
    """Headers that engines get besides the session headers. Add `authorization` for engines with API keys."""

    session_idle_timeout: Seconds = 900.0
    """A session without a request for so long is no longer open."""
    session_memory: Delay = 14400.0
    """How much longer the place of its cache is remembered, for a session that comes back."""
    max_sessions: Annotated[int, Field(ge=1)] = 100_000

    max_body_bytes: Annotated[int, Field(ge=1024)] = 64 * 1024 * 1024
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
