"""`dba plugins why`: which plugin a configuration gets, and what is to be said about every other one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import click

from dba_cli.commands.plugins.common import KIND_OF_LAYERS, json_option
from dba_cli.options import config_options, plugin_options, strict_option
from dba_cli.preflight import load_checked
from dba_cli.terminal import echo
from dba_core.contracts import Kind
from dba_core.runs.choosing import ConfigChoice, PluginUse

if TYPE_CHECKING:
    from dba_core.registry.explain import Other
    from dba_core.runs.selection import PlacedSelection


@click.command()
@click.argument("kind", type=KIND_OF_LAYERS)
@config_options
@plugin_options
@strict_option
@json_option
def why(kind: Kind, flags: ConfigChoice, plugin_flags: PluginUse, strict: bool, as_json: bool) -> None:
    """Explain which plugin of KIND a configuration gets, and why not the others.

    Where layers chose for themselves, each choice is explained, with its layers.

    \b
    Examples:
      dba plugins why decode_backend
      dba plugins why gate --preset paper-gqa
      dba plugins why summarizer --plugin summarizer@layers.0-1=conv --json
    """
    from dba_cli.progress import TerminalReporter
    from dba_cli.rendering import echo_json
    from dba_core.registry import refuse_fallbacks

    registry = plugin_flags.registry(TerminalReporter())
    config = load_checked(flags, registry).config
    from dba_core.registry.explain import explain_others
    from dba_core.runs.selection import explain_selection

    placed = explain_selection(kind, config, registry)
    if strict:
        refuse_fallbacks((each.where, each.selection) for each in placed)
    explained = [(each, explain_others(registry, each.selection)) for each in placed]
    if as_json:
        documents = [_document(each, others) for each, others in explained]
        echo_json(documents[0] if len(documents) == 1 else documents)
        return
    for each, others in explained:
        _show(each, others, of_several=len(placed) > 1)


def _show(placed: PlacedSelection, others: list[Other], *, of_several: bool) -> None:
    selection, where = placed.selection, f"@layers.{placed.where}" if of_several else ""
    chosen = f"{selection.name} of {selection.info.distribution} {selection.info.version}"
    echo(f"{selection.kind}{where}: {chosen} ({selection.why})")
    for other in others:
        echo(f"  {other.state}: {other.info.name} of {other.info.distribution}: {other.why}")
    known = {other.info.name for other in others}
    for passed in selection.passed_over:
        if passed.name not in known:
            echo(f"  passed over: {passed}")


def _document(placed: PlacedSelection, others: list[Other]) -> dict[str, Any]:
    selection = placed.selection
    return {
        "kind": selection.kind,
        "layers": placed.where,
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
        "others": [
            {
                "name": other.info.name,
                "distribution": other.info.distribution,
                "state": other.state,
                "why": other.why,
                "reasons": [attrs.asdict(reason) for reason in other.reasons],
            }
            for other in others
        ],
    }
