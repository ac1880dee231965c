"""`dba plugins check`: the contract of a kind, run on one plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from dba_cli import completion
from dba_cli.commands.plugins.common import KIND, kinds_with
from dba_cli.options import json_option, plugin_options
from dba_cli.output.terminal import echo
from dba_core.contracts import Kind
from dba_core.runs.choosing import PluginUse

if TYPE_CHECKING:
    from dba_core.testing import CheckReport, CheckResult


@click.command()
@click.argument("name", shell_complete=completion.plugin_names)
@click.option("--kind", type=KIND, help="Where two kinds have a plugin of that name.")
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    shell_complete=completion.devices,
    help="Where to test: cpu, cuda, cuda:N.",
)
@click.option("--quick", is_flag=True, help="The small sizes only; leaves out the large ones.")
@plugin_options
@json_option
def check(
    name: str, kind: Kind | None, device: str, quick: bool, plugin_flags: PluginUse, as_json: bool
) -> int:
    """Run the contract that every plugin of its kind has to keep on the plugin NAME.

    Exit code 1: a promise is broken. 4: the plugin is missing, or is none.

    \b
    Examples:
      dba plugins check causal
      dba plugins check streaming --quick
      dba plugins check none --kind gate --json
    """
    from dba_cli.output.progress import TerminalReporter

    registry = plugin_flags.registry(TerminalReporter())
    kinds = kinds_with(registry, name, kind)
    for each in kinds:
        registry.load(each, name)
    from dba_cli.output.rendering import echo_json
    from dba_core.testing import check_plugin

    reports = [check_plugin(each, name, registry=registry, device=device, quick=quick) for each in kinds]
    if as_json:
        documents = [report.to_dict() for report in reports]
        echo_json(documents[0] if len(documents) == 1 else documents)
    else:
        for report in reports:
            _show(report)
    return 0 if all(report.ok for report in reports) else 1


def _show(report: CheckReport) -> None:
    from dba_cli.output.rendering import columns

    rows = [(result.name, _state(result), result.proves) for result in report.results]
    columns(f"{report.kind} {report.name} on {report.device}", ["check", "state", "what it proves"], rows)
    for violation in report.violations:
        echo(
            f"{violation.check}\n  case      {violation.case}\n  expected  {violation.expected}\n"
            f"  got       {violation.got}\n  hint      {violation.hint}\n"
        )
    for reason, count in _declined(report).items():
        echo(f"Declined {count} times: {reason}")
    echo(_closing(report))


def _closing(report: CheckReport) -> str:
    broken, total = sum(not result.ok for result in report.results), len(report.results)
    if broken:
        return f"{broken} of {total} checks failed."
    if not report.quick:
        return f"All {total} checks passed."
    return (
        f"All {total} checks passed in small sizes. --quick leaves out the large ones, such as rows of "
        f"thousands of tokens; `dba plugins check {report.name} --kind {report.kind}` runs them all."
    )


def _state(result: CheckResult) -> str:
    if not result.ok:
        return "FAILED"
    return f"ok ({result.cases} cases)" if result.cases else "ok"


def _declined(report: CheckReport) -> dict[str, int]:
    """The plugin's reasons over all checks."""
    total: dict[str, int] = {}
    for result in report.results:
        for reason, count in result.refused.items():
            total[reason] = total.get(reason, 0) + count
    return total
