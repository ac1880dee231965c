"""`dba plugins`: list what is installed, describe one plugin, explain a choice.

`list` reads metadata only; `info` imports the one plugin; `why` imports those that it has to ask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from dba_cli.lazy import HintingGroup
from dba_cli.options import ConfigFlags, config_options
from dba_core.contracts import KINDS, Kind

if TYPE_CHECKING:
    from dba_core.registry import LoadedPlugin, PluginInfo, Registry, Selection

_KIND = click.Choice(KINDS)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


@click.group(cls=HintingGroup)
def plugins() -> None:
    """List, describe and explain plugins."""


@plugins.command("list")
@click.option("--kind", type=_KIND, help="Only this kind.")
@_JSON
def list_plugins(kind: Kind | None, as_json: bool) -> None:
    """List the installed plugins. Imports none of them.

    \b
    Examples:
      dba plugins list
      dba plugins list --kind gate --json
    """
    from dba_cli.rendering import columns, echo_json
    from dba_core.registry import Registry

    registry = Registry.default()
    found = registry.list(kind)
    if as_json:
        echo_json({"plugins": [_info_document(info) for info in found], "problems": list(registry.problems)})
        return
    rows = [
        (info.kind, info.name, info.distribution, info.version, info.problem or "available") for info in found
    ]
    columns("Plugins", ["kind", "name", "distribution", "version", "state"], rows)
    for problem in registry.problems:
        click.echo(f"warning: {problem}", err=True)


@plugins.command()
@click.argument("name")
@click.option("--kind", type=_KIND, help="Where two kinds have a plugin of that name.")
@_JSON
def info(name: str, kind: Kind | None, as_json: bool) -> None:
    """Describe the plugin NAME: what it is, where it is from, its options.

    \b
    Examples:
      dba plugins info causal
      dba plugins info none --kind gate
    """
    from dba_cli.rendering import columns, echo_json, two_columns
    from dba_core.registry import Registry
    from dba_core.registry.options import describe_options

    registry = Registry.default()
    loaded = [registry.load(each, name) for each in _kinds_with(registry, name, kind)]
    if as_json:
        documents = [_plugin_document(each) for each in loaded]
        echo_json(documents[0] if len(documents) == 1 else documents)
        return
    for each in loaded:
        two_columns(
            f"{each.info.kind} {each.info.name}",
            [
                ("What", each.plugin.summary),
                ("Distribution", f"{each.info.distribution} {each.info.version}"),
                ("Module", each.info.module),
                ("Contract", str(each.plugin.contract)),
                ("Choose it with", f"--plugin {each.info.kind}={each.info.name}"),
            ],
        )
        options = [
            (option, kind, repr(default))
            for option, kind, default in describe_options(each.plugin.options_class)
        ]
        if options:
            columns("Options", ["name", "type", "default"], options)


@plugins.command()
@click.argument("kind", type=_KIND)
@config_options
@_JSON
def why(kind: Kind, flags: ConfigFlags, as_json: bool) -> None:
    """Explain which plugin of KIND a configuration gets, and why not the others.

    \b
    Examples:
      dba plugins why decode_backend
      dba plugins why gate --preset paper-gqa
    """
    from dba_cli.rendering import echo_json
    from dba_core.registry import Registry
    from dba_core.runs.selection import explain_selection

    selection = explain_selection(kind, flags.load().config, Registry.default())
    if as_json:
        echo_json(_why_document(selection))
        return
    chosen = selection.info
    click.echo(f"{kind}: {chosen.name} of {chosen.distribution} {chosen.version} ({selection.why})")
    for passed in selection.passed_over:
        click.echo(f"  passed over {passed}")


def _kinds_with(registry: Registry, name: str, kind: Kind | None) -> list[Kind]:
    """The kinds that have a plugin of this name. Raises PluginError when there is none."""
    from dba_core.errors import PluginError, unknown

    if kind is not None:
        return [kind]
    infos = registry.list()
    kinds: list[Kind] = [
        each for each in KINDS if any(_is_named(info, name) for info in infos if info.kind == each)
    ]
    if not kinds:
        raise PluginError(unknown("plugin", name, {info.name for info in infos}))
    return kinds


def _is_named(info: PluginInfo, name: str) -> bool:
    return name in (info.name, info.qualified)


def _info_document(info: PluginInfo) -> dict[str, Any]:
    return {
        "kind": info.kind,
        "name": info.name,
        "distribution": info.distribution,
        "version": info.version,
        "module": info.module,
        "problem": info.problem,
    }


def _plugin_document(loaded: LoadedPlugin) -> dict[str, Any]:
    from dba_core.registry.options import describe_options

    options = describe_options(loaded.plugin.options_class)
    return {
        **_info_document(loaded.info),
        "summary": loaded.plugin.summary,
        "contract": loaded.plugin.contract,
        "options": [{"name": name, "type": kind, "default": default} for name, kind, default in options],
    }


def _why_document(selection: Selection) -> dict[str, Any]:
    import attrs

    return {
        "kind": selection.kind,
        "name": selection.name,
        "distribution": selection.info.distribution,
        "version": selection.info.version,
        "why": selection.why,
        "request": attrs.asdict(selection.request),
        "passed_over": [
            {
                "name": passed.name,
                "problem": passed.problem,
                "reasons": [attrs.asdict(reason) for reason in passed.reasons],
            }
            for passed in selection.passed_over
        ],
    }
