"""What the demo prints at its end: the numbers, the checks, and how to go on with a cluster that stays."""

from __future__ import annotations

import shlex
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from retinue_emulator.replay.tables import summary_table

from .report import RunRecord


def print_summary(console: Console, record: RunRecord) -> None:
    """Numbers of the replay beside what was expected, and one line per check."""
    console.print()
    console.print(summary_table(record.outcome.summary, record.outcome.expected))
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in record.checks:
        mark = "[green]ok[/green]" if check.passed else "[red]FAILED[/red]"
        table.add_row(mark, escape(check.name), escape(check.detail))
    console.print(table)


def kubeconfig_line(kubeconfig: Path) -> str:
    """The line that makes kubectl use the demo's cluster."""
    return f"export KUBECONFIG={shlex.quote(str(kubeconfig))}"


def keep_text(kubeconfig: Path, kubectl: Path) -> str:
    """How to look around in the cluster that is kept."""
    return f"""
The cluster stays up until Ctrl-C here. In another terminal:

  {kubeconfig_line(kubeconfig)}
  export PATH={shlex.quote(str(kubectl.parent))}:$PATH
  kubectl get ap,pp,dp,kvt,nc -n agents
  kubectl describe ap coder -n agents
  kubectl patch ap coder -n agents --type merge -p '{{"spec":{{"autoscaling":{{"mode":"Off"}}}}}}'
  kubectl scale pp coder-primary -n agents --replicas 3
"""
