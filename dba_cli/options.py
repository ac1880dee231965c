"""Options that several of our own commands take, each listed once, in the class that the command gets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from dba_cli.plugin_command import json_option as json_option
from dba_cli.plugin_command import quiet_option as quiet_option
from dba_cli.plugin_command import request_options
from dba_core.runs.choosing import ConfigChoice, DecodingRunChoice, PluginUse

Command = Callable[..., Any]

SPECIAL_HELP = "Without it: as the model's own tokenizer does."

#: The command gets `flags: ConfigChoice`, `plugin_flags: PluginUse`, `run_flags: DecodingRunChoice`.
config_options = request_options(ConfigChoice, "flags")
plugin_options = request_options(PluginUse, "plugin_flags")
run_options = request_options(DecodingRunChoice, "run_flags")

strict_option = click.option(
    "--strict", is_flag=True, help="Where 'auto' would not take its first choice: an error with the reasons."
)

_SPECIAL = (
    click.option(
        "--bos/--no-bos",
        default=None,
        help=f"Begin a text with the model's BOS token, or do not. {SPECIAL_HELP}",
    ),
    click.option(
        "--eos/--no-eos",
        default=None,
        help=f"End a text with the model's EOS token, or do not. {SPECIAL_HELP}",
    ),
)


def special_options(command: Command) -> Command:
    """Add the options of a command that reads texts; it gets them as `bos` and `eos`, None if not given."""
    for option in reversed(_SPECIAL):
        command = option(command)
    return command
