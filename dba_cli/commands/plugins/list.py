"""`dba plugins list`: what is installed, from metadata alone; with --check, what can run here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from dba_cli.commands.plugins.common import KIND, info_document, needs_text
from dba_cli.failure import in_flags
from dba_cli.options import json_option, plugin_options
from dba_cli.output.terminal import warn
from dba_core.contracts import Kind
from dba_core.runs.choosing import PluginUse

if TYPE_CHECKING:
    from dba_core.registry import PluginInfo, Registry


@click.command("list")
@click.option("--kind", type=KIND, help="Only this kind.")
@click.option("--check", is_flag=True, help="Import each plugin and ask it whether it can run here.")
@click.option("--device", help="Where, with --check: cpu (the default), cuda, cuda:N.")
@plugin_options
@json_option
def list_plugins(
    kind: Kind | None, check: bool, device: str | None, plugin_flags: PluginUse, as_json: bool
) -> None:
    """List the installed plugins. Imports none of them, unless --check is given.

    The state tells what metadata can tell: a plugin's problem, or a package that it needs and that is not
    installed. Whether it can run on a device only the plugin itself knows: --check asks it.

    \b
    Examples:
      dba plugins list
      dba plugins list --kind gate --json
      dba plugins list --check
    """
    from dba_cli.output.rendering import columns, echo_json

    if device is not None and not check:
        raise click.UsageError("--device belongs to --check, which asks the plugins whether they run there.")
    device = device or "cpu"
    from dba_cli.output.progress import TerminalReporter

    registry = plugin_flags.registry(TerminalReporter())
    found = registry.list(kind)
    runs = _runs(registry, found, device) if check else None
    if as_json:
        documents = [info_document(info) for info in found]
        if runs is not None:
            documents = [{**each, "runs": {device: said}} for each, said in zip(documents, runs, strict=True)]
        echo_json({"plugins": documents, "problems": list(registry.problems)})
        return
    rows = [[info.kind, info.name, info.distribution, info.version, _state(info)] for info in found]
    header = ["kind", "name", "distribution", "version", "state"]
    if runs is not None:
        header[-1] = f"runs on {device}"
        rows = [[*row[:-1], said] for row, said in zip(rows, runs, strict=True)]
    columns("Plugins", header, rows)
    for problem in registry.problems:
        warn(problem)


def _state(info: PluginInfo) -> str:
    if info.problem is not None:
        return in_flags(info.problem)
    return f"needs {needs_text(info)}" if info.missing else "available"


def _runs(registry: Registry, infos: list[PluginInfo], device: str) -> list[str]:
    """What each plugin says to a typical request."""
    from dba_cli.commands.plugins.doctor import diagnose_plugin

    return [diagnose_plugin(registry, info, device=device).runs for info in infos]
