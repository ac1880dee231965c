"""`dba plugins`: the group; each command is a module of this package, imported when it is called."""

from __future__ import annotations

import click

from dba_cli.groups import LazyCommand, LazyGroup

_HERE = "dba_cli.commands.plugins"
_COMMANDS = {
    "check": LazyCommand(f"{_HERE}.check:check", "Run the contract of its kind on a plugin."),
    "list": LazyCommand(f"{_HERE}.list:list_plugins", "List the installed plugins. Imports none of them."),
    "info": LazyCommand(f"{_HERE}.info:info", "Describe a plugin: what it is, where from, its options."),
    "new": LazyCommand(f"{_HERE}.new:new", "Write an installable package with a plugin of your own."),
    "doctor": LazyCommand(f"{_HERE}.doctor:doctor", "Check every installed plugin, one line each."),
    "why": LazyCommand(f"{_HERE}.why:why", "Explain which plugin a configuration gets, and why not others."),
}


@click.group(cls=LazyGroup, own=_COMMANDS)
def plugins() -> None:
    """List, describe, explain and check plugins."""
