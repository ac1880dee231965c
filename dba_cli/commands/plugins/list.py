"""`dba plugins list`: what is installed, from metadata alone."""

from __future__ import annotations

import click

from dba_cli.commands.plugins.common import KIND, info_document, json_option
from dba_cli.plugin_options import PluginFlags, plugin_options
from dba_cli.terminal import warn
from dba_core.contracts import Kind


@click.command("list")
@click.option("--kind", type=KIND, help="Only this kind.")
@plugin_options
@json_option
def list_plugins(kind: Kind | None, plugin_flags: PluginFlags, as_json: bool) -> None:
    """List the installed plugins. Imports none of them.

    \b
    Examples:
      dba plugins list
      dba plugins list --kind gate --json
    """
    from dba_cli.rendering import columns, echo_json

    registry = plugin_flags.registry()
    found = registry.list(kind)
    if as_json:
        echo_json({"plugins": [info_document(info) for info in found], "problems": list(registry.problems)})
        return
    rows = [
        (info.kind, info.name, info.distribution, info.version, info.problem or "available") for info in found
    ]
    columns("Plugins", ["kind", "name", "distribution", "version", "state"], rows)
    for problem in registry.problems:
        warn(problem)
