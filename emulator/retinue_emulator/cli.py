"""`retinue-emulator`: every command of the emulator under one name."""

from __future__ import annotations

import sys

import typer

from retinue_emulator.engine.cli import engine_main, tier_main

_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


def build_app() -> typer.Typer:
    """The command tree."""
    # Imported here, so that an engine in a container starts without them.
    from retinue_emulator.demo.cli import demo
    from retinue_emulator.kind.cli import app as kind
    from retinue_emulator.kubeletplugin.cli import kubelet_plugin
    from retinue_emulator.loopback.cli import app as loopback
    from retinue_emulator.nodeplugin.cli import inventory, node_plugin
    from retinue_emulator.replay.cli import app as replay

    app = typer.Typer(
        name="retinue-emulator",
        help="Stands in for hardware and users: emulated nodes, simulated engines, replayed sessions.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.command(name="demo")(demo)
    app.command(name="node-plugin")(node_plugin)
    app.command(name="kubelet-plugin")(kubelet_plugin)
    app.command(name="inventory")(inventory)
    app.command(name="engine", context_settings=_PASS_ON, add_help_option=False)(engine)
    app.command(name="tier", context_settings=_PASS_ON, add_help_option=False)(tier)
    app.add_typer(loopback, name="loopback")
    app.add_typer(kind, name="kind")
    app.add_typer(replay, name="replay")
    return app


def engine(context: typer.Context) -> None:
    """Run one simulated engine until SIGTERM; `engine --help` lists its arguments."""
    raise typer.Exit(engine_main(context.args))


def tier(context: typer.Context) -> None:
    """Run one simulated KV cache tier server until SIGTERM; `tier --help` lists its arguments."""
    raise typer.Exit(tier_main(context.args))


def main() -> None:
    """The console script."""
    match sys.argv[1:]:
        case ["engine", *args]:
            sys.exit(engine_main(args))
        case ["tier", *args]:
            sys.exit(tier_main(args))
    build_app()(prog_name="retinue-emulator")
