"""`dba plugins info`: one plugin, imported and described."""

from __future__ import annotations

import typing
from typing import TYPE_CHECKING, Any

import click

from dba_cli import completion
from dba_cli.commands.plugins.common import KIND, info_document, kinds_with, needs_text
from dba_cli.failure import in_flags
from dba_cli.options import json_option, plugin_options
from dba_core.contracts import Kind
from dba_core.kinds import KINDS
from dba_core.runs.choosing import PluginUse

if TYPE_CHECKING:
    from dba_core.registry import LoadedPlugin


@click.command()
@click.argument("name", shell_complete=completion.plugin_names)
@click.option("--kind", type=KIND, help="Where two kinds have a plugin of that name.")
@plugin_options
@json_option
def info(name: str, kind: Kind | None, plugin_flags: PluginUse, as_json: bool) -> None:
    """Describe the plugin NAME: what it is, where it is from, its options.

    \b
    Examples:
      dba plugins info causal
      dba plugins info none --kind gate
    """
    from dba_cli.output.progress import TerminalReporter
    from dba_cli.output.rendering import echo_json

    registry = plugin_flags.registry(TerminalReporter())
    loaded = [registry.load(each, name) for each in kinds_with(registry, name, kind)]
    if as_json:
        documents = [_document(each) for each in loaded]
        echo_json(documents[0] if len(documents) == 1 else documents)
        return
    for each in loaded:
        _show(each)


def _show(loaded: LoadedPlugin) -> None:
    from dba_cli.output.rendering import columns, two_columns

    info, plugin = loaded.info, loaded.plugin
    two_columns(
        f"{info.kind} {info.name}",
        [
            ("What", plugin.summary),
            ("Distribution", f"{info.distribution} {info.version}"),
            ("Module", info.module),
            ("Contract", str(plugin.contract)),
            *([("Needs", needs_text(info))] if info.needs else []),
            ("Choose it with", in_flags(KINDS[info.kind].chosen_by(info.name))),
            *([("Warning", loaded.deprecation)] if loaded.deprecation else []),
        ],
    )
    options = [(name, kind, repr(default)) for name, kind, default in describe_options(plugin.options_class)]
    if options:
        columns("Options", ["name", "type", "default"], options)


def _document(loaded: LoadedPlugin) -> dict[str, Any]:
    options = describe_options(loaded.plugin.options_class)
    return {
        **info_document(loaded.info),
        "summary": loaded.plugin.summary,
        "contract": loaded.plugin.contract,
        "deprecation": loaded.deprecation,
        "options": [{"name": name, "type": kind, "default": default} for name, kind, default in options],
    }


def describe_options(options_class: type[Any]) -> list[tuple[str, str, Any]]:
    """(name, type, default) of each option."""
    import attrs

    from dba_core.registry.plugin_loading import options_to_dict

    defaults = options_to_dict(options_class())
    return [
        (field.name, _type_text(field.type), defaults.get(field.name))
        for field in attrs.fields(options_class)
    ]


def _type_text(hint: Any) -> str:
    simple = isinstance(hint, type) and not typing.get_args(hint)
    return hint.__name__ if simple else str(hint)
