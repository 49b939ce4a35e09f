"""The command line of the operator: run, version, rbac."""

from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError

from retinue_operator.preflight import Exit
from retinue_operator.process import serve
from retinue_operator.rbac import render_all
from retinue_operator.settings import LogFormat, LogLevel, Settings

app = typer.Typer(
    name="retinue-operator",
    help="Retinue: a Kubernetes operator for agent inference clusters.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _help(name: str) -> str:
    """A flag's help is the setting's own description, plus the variable that sets it too."""
    setting = Settings.model_fields[name]
    default = setting.default
    shown = (
        "" if default in (None, ()) or setting.is_required() or setting.default_factory else f" [default: {default}]"
    )
    return f"{setting.description}{shown} [env: RETINUE_{name.upper()}]"


@app.command()
def run(
    kubeconfig: Annotated[Path | None, typer.Option(help=_help("kubeconfig"))] = None,
    context: Annotated[str | None, typer.Option(help=_help("context"))] = None,
    namespaces: Annotated[str | None, typer.Option(help=_help("namespaces"))] = None,
    prometheus_url: Annotated[str | None, typer.Option(help=_help("prometheus_url"))] = None,
    prometheus_username: Annotated[str | None, typer.Option(help=_help("prometheus_username"))] = None,
    prometheus_password_file: Annotated[Path | None, typer.Option(help=_help("prometheus_password_file"))] = None,
    prometheus_bearer_file: Annotated[Path | None, typer.Option(help=_help("prometheus_bearer_file"))] = None,
    prometheus_ca_file: Annotated[Path | None, typer.Option(help=_help("prometheus_ca_file"))] = None,
    prometheus_cert_file: Annotated[Path | None, typer.Option(help=_help("prometheus_cert_file"))] = None,
    prometheus_key_file: Annotated[Path | None, typer.Option(help=_help("prometheus_key_file"))] = None,
    prometheus_verify: Annotated[
        bool | None, typer.Option("--prometheus-verify/--no-prometheus-verify", help=_help("prometheus_verify"))
    ] = None,
    gateway_url: Annotated[str | None, typer.Option(help=_help("gateway_url"))] = None,
    http_host: Annotated[str | None, typer.Option(help=_help("http_host"))] = None,
    http_port: Annotated[int | None, typer.Option(help=_help("http_port"))] = None,
    http_tls_cert_file: Annotated[Path | None, typer.Option(help=_help("http_tls_cert_file"))] = None,
    http_tls_key_file: Annotated[Path | None, typer.Option(help=_help("http_tls_key_file"))] = None,
    metrics_token_file: Annotated[Path | None, typer.Option(help=_help("metrics_token_file"))] = None,
    debug_port: Annotated[int | None, typer.Option(help=_help("debug_port"))] = None,
    leader_election: Annotated[
        bool | None, typer.Option("--leader-election/--no-leader-election", help=_help("leader_election"))
    ] = None,
    lease_name: Annotated[str | None, typer.Option(help=_help("lease_name"))] = None,
    lease_namespace: Annotated[str | None, typer.Option(help=_help("lease_namespace"))] = None,
    lease_duration: Annotated[float | None, typer.Option(help=_help("lease_duration"))] = None,
    lease_renew_deadline: Annotated[float | None, typer.Option(help=_help("lease_renew_deadline"))] = None,
    lease_retry_period: Annotated[float | None, typer.Option(help=_help("lease_retry_period"))] = None,
    identity: Annotated[str | None, typer.Option(help=_help("identity"))] = None,
    workers: Annotated[int | None, typer.Option(help=_help("workers"))] = None,
    min_gap: Annotated[float | None, typer.Option(help=_help("min_gap"))] = None,
    max_backoff: Annotated[float | None, typer.Option(help=_help("max_backoff"))] = None,
    sweep_interval: Annotated[float | None, typer.Option(help=_help("sweep_interval"))] = None,
    watch_silence: Annotated[float | None, typer.Option(help=_help("watch_silence"))] = None,
    stop_grace: Annotated[float | None, typer.Option(help=_help("stop_grace"))] = None,
    log_format: Annotated[LogFormat | None, typer.Option(help=_help("log_format"))] = None,
    log_level: Annotated[LogLevel | None, typer.Option(help=_help("log_level"))] = None,
    history_file: Annotated[Path | None, typer.Option(help=_help("history_file"))] = None,
) -> None:
    """Run the operator until SIGTERM or Ctrl-C. A flag wins over its environment variable.

    Exit codes: 0 stopped as asked, 1 failed, 2 wrong usage, 3 API server not usable, 4 CRDs not installed,
    5 lease lost.
    """
    flags = {name: value for name, value in locals().items() if value is not None}
    try:
        settings = Settings(**flags)
    except ValidationError as error:
        for problem in error.errors():
            where = ".".join(map(str, problem["loc"])) or "settings"
            typer.echo(f"retinue-operator: {where}: {problem['msg']}", err=True)
        raise typer.Exit(Exit.USAGE) from error
    except SettingsError as error:
        # Its cause quotes the value.
        typer.echo(f"retinue-operator: {error}", err=True)
        raise typer.Exit(Exit.USAGE) from None
    # Imported here, because the other commands need none of the controllers and their dependencies.
    from retinue_operator.controllers import all_controllers

    raise typer.Exit(serve(settings, all_controllers))


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(f"retinue-operator {distribution_version('retinue')}")


@app.command()
def rbac(
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; fail if a file is not as it should be.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder of the generated files.")] = Path("deploy"),
) -> None:
    """Write the namespaces, service accounts and roles that Retinue needs, from its table of rights."""
    drifted = []
    for name, text in render_all().items():
        path = out / name
        if path.is_file() and path.read_text() == text:
            continue
        drifted.append(str(path))
        if not check:
            out.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    if check and drifted:
        typer.echo(f"not as generated: {', '.join(drifted)}; run retinue-operator rbac", err=True)
        raise typer.Exit(Exit.DRIFT)
    typer.echo("up to date" if not drifted else f"written: {', '.join(drifted)}")


@app.command()
def decisions(
    file: Annotated[Path, typer.Argument(help="File that the operator wrote with --history-file.")],
    replay: Annotated[
        bool, typer.Option("--replay", help="Decide again from the recorded inputs; fail if anything differs.")
    ] = False,
    every: Annotated[bool, typer.Option("--all", help="Show decisions that change nothing, too.")] = False,
) -> None:
    """Show the autoscaler's decisions, and check that they replay to the same."""
    from retinue.autoscaling.history import Unreadable
    from retinue_operator.decisions import entries

    shown = different = 0
    try:
        for entry in entries(file, replay=replay, every=every):
            typer.echo(entry.text())
            shown += 1
            different += entry.same is False
    except (OSError, Unreadable) as error:
        typer.echo(f"retinue-operator: {error}", err=True)
        raise typer.Exit(Exit.USAGE) from error
    typer.echo(f"{shown} decisions shown, {different} replayed to something else" if replay else f"{shown} decisions")
    if different:
        raise typer.Exit(Exit.FAILED)


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
