"""`dba plugins why`: which plugin a configuration gets, and what is against the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from dba_cli.commands.plugins.common import KIND, json_option
from dba_cli.options import ConfigFlags, config_options
from dba_core.contracts import Kind

if TYPE_CHECKING:
    from dba_core.registry import Selection


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

    selection = explain_selection(kind, flags.load().config, Registry.default())
    if as_json:
        echo_json(_document(selection))
        return
    chosen = selection.info
    click.echo(f"{kind}: {chosen.name} of {chosen.distribution} {chosen.version} ({selection.why})")
    for passed in selection.passed_over:
        click.echo(f"  passed over {passed}")


def _document(selection: Selection) -> dict[str, Any]:
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
