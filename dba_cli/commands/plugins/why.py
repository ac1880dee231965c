"""`dba plugins why`: which plugin a configuration gets, and what is against the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from dba_cli.commands.plugins.common import KIND, json_option
from dba_cli.options import ConfigFlags, config_options
from dba_core.contracts import Kind

if TYPE_CHECKING:
    from dba_core.runs.selection import PlacedSelection


@click.command()
@click.argument("kind", type=KIND)
@config_options
@json_option
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

    placed = explain_selection(kind, flags.load().config, Registry.default())
    if as_json:
        documents = [_document(each) for each in placed]
        echo_json(documents[0] if len(documents) == 1 else documents)
        return
    for each in placed:
        _show(each, of_several=len(placed) > 1)


def _show(placed: PlacedSelection, *, of_several: bool) -> None:
    selection, where = placed.selection, f"@layers.{placed.where}" if of_several else ""
    chosen = f"{selection.name} of {selection.info.distribution} {selection.info.version}"
    click.echo(f"{selection.kind}{where}: {chosen} ({selection.why})")
    for passed in selection.passed_over:
        click.echo(f"  passed over {passed}")


def _document(placed: PlacedSelection) -> dict[str, Any]:
    import attrs

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
    }
