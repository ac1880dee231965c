"""`dba plugins doctor`: whether every installed plugin can be used, one line each."""

from __future__ import annotations

import attrs
import click

from dba_cli.commands.plugins.common import json_option
from dba_cli.options import plugin_options
from dba_cli.terminal import echo
from dba_core.errors import PluginError
from dba_core.runs.choosing import PluginUse


@click.command()
@plugin_options
@json_option
def doctor(plugin_flags: PluginUse, as_json: bool) -> int:
    """Look at every installed plugin: entry point, name, import, contract, answer to a typical request.

    Imports them all. Exit code 4 says that something is wrong; a plugin that says no is sound.

    \b
    Examples:
      dba plugins doctor
      dba plugins doctor --json
    """
    from dba_cli.progress import TerminalReporter
    from dba_cli.rendering import columns, echo_json
    from dba_core.registry.doctor import diagnose

    found = diagnose(plugin_flags.registry(TerminalReporter()))
    wrong = [each for each in found if each.status == "error"]
    if as_json:
        echo_json({"sound": not wrong, "diagnoses": [attrs.asdict(each) for each in found]})
    else:
        columns("Plugins", ["what", "state", "found"], [(d.subject, d.status, d.text) for d in found])
        echo(f"{len(wrong)} of {len(found)} are wrong." if wrong else "Nothing is wrong.")
    return PluginError.exit_code if wrong else 0
