"""The command `retinue-gateway`."""

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import prometheus_client
import typer
from pydantic import ValidationError

from retinue.access.files import Unusable
from retinue_gateway.callers import CacheIsolation
from retinue_gateway.cluster import ClusterConfigError
from retinue_gateway.logs import configure_logs
from retinue_gateway.server import Gateway
from retinue_gateway.settings import GatewaySettings, LogFormat, LogLevel

# prometheus_client has no annotation here.
_leave_out_creation_times: Callable[[], None] = prometheus_client.disable_created_metrics

app = typer.Typer(
    name="retinue-gateway",
    help="The session-aware, OpenAI-compatible front door of Retinue's agent inference clusters.",
    no_args_is_help=True,
    add_completion=False,
    # They would show local variables, and with them credentials.
    pretty_exceptions_enable=False,
)

Kubeconfig = Annotated[
    Path | None, typer.Option(help="Kubeconfig file. Default: the pod's service account.", dir_okay=False)
]
Namespaces = Annotated[list[str] | None, typer.Option("--namespace", help="Namespace to serve; repeat. Default: all.")]
Host = Annotated[str | None, typer.Option(help="Address to listen on.")]
Port = Annotated[int | None, typer.Option(help="Port of the API; 0 picks a free one.")]
AdminPort = Annotated[int | None, typer.Option(help="Port of /livez, /readyz, /metrics. Default: the API's port.")]
AdminHost = Annotated[str | None, typer.Option(help="Address of that port. Default: --host.")]
TlsCert = Annotated[Path | None, typer.Option(help="PEM file of the API port's certificate chain: it serves TLS.")]
TlsKey = Annotated[Path | None, typer.Option(help="PEM file of that certificate's key.")]
Tokens = Annotated[
    Path | None, typer.Option(help="YAML file of tenants, their tokens and namespaces. Default: no authentication.")
]
AdminTlsCert = Annotated[Path | None, typer.Option(help="PEM file of the certificate chain of the port of /metrics.")]
AdminTlsKey = Annotated[Path | None, typer.Option(help="PEM file of that certificate's key.")]
MetricsToken = Annotated[Path | None, typer.Option(help="File of tokens, one per line, that may read /metrics.")]
EngineToken = Annotated[Path | None, typer.Option(help="File with the token that the gateway sends to engines.")]
Isolation = Annotated[
    CacheIsolation | None, typer.Option(help="Between whom no cached prefix is a hit: tenants, namespaces, nobody.")
]
SessionHeader = Annotated[
    list[str] | None, typer.Option("--session-header", help="Header that names a session; repeat, first match wins.")
]
ParentHeader = Annotated[
    list[str] | None, typer.Option("--parent-session-header", help="Header that names a session's parent; repeat.")
]
FinalHeader = Annotated[
    list[str] | None, typer.Option("--final-session-header", help="Header that ends a session when true; repeat.")
]
ForwardHeader = Annotated[
    list[str] | None, typer.Option("--forward-header", help="Further header that engines get; repeat.")
]
IdleTimeout = Annotated[float | None, typer.Option(help="Seconds after which an idle session is no longer open.")]
SessionMemory = Annotated[
    float | None, typer.Option(help="Seconds for which the place of an idle session's cache stays known.")
]
MaxSessions = Annotated[int | None, typer.Option(help="Most sessions to remember.")]
MaxBodyBytes = Annotated[int | None, typer.Option(help="Largest request body.")]
MaxHeldBodyBytes = Annotated[int | None, typer.Option(help="Most bytes of bodies of all requests under way.")]
MaxInFlight = Annotated[int | None, typer.Option(help="Most requests under way.")]
MaxInFlightPerTenant = Annotated[int | None, typer.Option(help="Most of one tenant or namespace. Default: no limit.")]
MaxConnections = Annotated[int | None, typer.Option(help="Most connections to one port.")]
ClientIdle = Annotated[float | None, typer.Option(help="Seconds in which a connection must bring a request's head.")]
ClientBody = Annotated[float | None, typer.Option(help="Seconds in which a request's body must come.")]
ClientWrite = Annotated[float | None, typer.Option(help="Seconds that a client may take for what waits for it.")]
QueueTimeout = Annotated[float | None, typer.Option(help="Seconds that a request waits for a ready instance.")]
MaxWaiting = Annotated[int | None, typer.Option(help="Most requests that wait so at one time.")]
MaxAttempts = Annotated[int | None, typer.Option(help="Attempts per request, all before its first token.")]
ConnectTimeout = Annotated[float | None, typer.Option(help="Seconds to connect to an engine.")]
UpstreamIdle = Annotated[float | None, typer.Option(help="Seconds without a byte after which an engine is given up.")]
ContextWeight = Annotated[
    float | None, typer.Option(help="Weight of placed context against queued tokens when a session is placed.")
]
ParentSlack = Annotated[
    int | None, typer.Option(help="Queued tokens that a parent's instance may be behind the best one.")
]
Spill = Annotated[int | None, typer.Option(help="Queued tokens beyond which a session is moved. Default: never.")]
LatencyScale = Annotated[
    float | None, typer.Option(help="Divides latency bucket bounds: the emulator's speed, else 1.")
]
ShutdownDelay = Annotated[float | None, typer.Option(help="Seconds to keep accepting after SIGTERM, not ready.")]
ShutdownGrace = Annotated[float | None, typer.Option(help="Seconds that running streams may take to finish.")]
Level = Annotated[LogLevel | None, typer.Option(help="Least important log level to show.")]
Format = Annotated[LogFormat | None, typer.Option(help="How logs are written.")]


@app.callback()
def root() -> None:
    """Keeps `run` a command of its own while it is the only one."""


@app.command(epilog="Every option can be set in the environment as RETINUE_GATEWAY_<NAME>, lists as a,b. Flags win.")
def run(
    kubeconfig: Kubeconfig = None,
    namespaces: Namespaces = None,
    host: Host = None,
    port: Port = None,
    admin_port: AdminPort = None,
    admin_host: AdminHost = None,
    tls_cert_file: TlsCert = None,
    tls_key_file: TlsKey = None,
    tokens_file: Tokens = None,
    admin_tls_cert_file: AdminTlsCert = None,
    admin_tls_key_file: AdminTlsKey = None,
    metrics_token_file: MetricsToken = None,
    engine_token_file: EngineToken = None,
    cache_isolation: Isolation = None,
    session_headers: SessionHeader = None,
    parent_session_headers: ParentHeader = None,
    final_session_headers: FinalHeader = None,
    forward_headers: ForwardHeader = None,
    session_idle_timeout: IdleTimeout = None,
    session_memory: SessionMemory = None,
    max_sessions: MaxSessions = None,
    max_body_bytes: MaxBodyBytes = None,
    max_held_body_bytes: MaxHeldBodyBytes = None,
    max_in_flight: MaxInFlight = None,
    max_in_flight_per_tenant: MaxInFlightPerTenant = None,
    max_connections: MaxConnections = None,
    client_idle_timeout: ClientIdle = None,
    client_body_timeout: ClientBody = None,
    client_write_timeout: ClientWrite = None,
    queue_timeout: QueueTimeout = None,
    max_waiting: MaxWaiting = None,
    max_attempts: MaxAttempts = None,
    connect_timeout: ConnectTimeout = None,
    upstream_idle_timeout: UpstreamIdle = None,
    context_weight: ContextWeight = None,
    parent_slack_tokens: ParentSlack = None,
    spill_queue_tokens: Spill = None,
    latency_scale: LatencyScale = None,
    shutdown_delay: ShutdownDelay = None,
    shutdown_grace: ShutdownGrace = None,
    log_level: Level = None,
    log_format: Format = None,
) -> None:
    """Serve until SIGTERM or SIGINT; then let running streams finish."""
    given: dict[str, Any] = {name: value for name, value in locals().items() if value is not None}
    try:
        settings = GatewaySettings(**given)
    except ValidationError as error:
        places = ((".".join(map(str, item["loc"])) or "settings", item["msg"]) for item in error.errors())
        wrong = "; ".join(f"{where}: {what}" for where, what in places)
        typer.echo(f"retinue-gateway: invalid settings: {wrong}", err=True)
        raise typer.Exit(2) from error
    configure_logs(settings.log_level, settings.log_format)
    # They would double the number of series, for creation times that nothing here reads.
    _leave_out_creation_times()
    try:
        asyncio.run(_serve(settings))
    except (ClusterConfigError, Unusable) as error:
        typer.echo(f"retinue-gateway: {error}", err=True)
        raise typer.Exit(1) from error
    except OSError as error:
        typer.echo(f"retinue-gateway: cannot listen on {settings.host}:{settings.port}: {error}", err=True)
        raise typer.Exit(1) from error


async def _serve(settings: GatewaySettings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await Gateway(settings).serve(stop)


def main() -> None:
    """Entry point of the console script."""
    app()
