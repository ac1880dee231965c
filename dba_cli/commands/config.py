"""`dba config`: show a configuration with the origin of every value, check a file, list presets. No torch."""

from __future__ import annotations

from pathlib import Path

import click

from dba_cli.lazy import HintingGroup
from dba_cli.options import ConfigFlags, config_options


@click.group(cls=HintingGroup)
def config() -> None:
    """Show and check configurations; list presets."""


@config.command()
@config_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def show(flags: ConfigFlags, as_json: bool) -> None:
    """Show every value and where it came from; the output can be given back with --config.

    \b
    Examples:
      dba config show --preset shakespeare-cpu
      dba config show --set training.steps=50 > my.toml
    """
    print_config(flags, as_json=as_json)


@config.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def check(file: Path, as_json: bool) -> None:
    """Check that FILE (.toml or .json) is a valid configuration. Exit code 3 says that it is not.

    \b
    Example:
      dba config show > my.toml && dba config check my.toml
    """
    from dba_cli.rendering import echo_json
    from dba_core.config.loading import DEFAULT_ORIGIN, load_config

    loaded = load_config(file=file)
    given = sorted(key for key, origin in loaded.origins.items() if origin != DEFAULT_ORIGIN)
    if as_json:
        echo_json({"file": str(file), "valid": True, "sets": given})
        return
    click.echo(f"{file} is valid; it sets {', '.join(given) or 'nothing'}.")


@config.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def presets(as_json: bool) -> None:
    """List the presets.

    \b
    Example:
      dba config presets
    """
    from dba_cli.rendering import columns, echo_json
    from dba_core.config.presets import list_presets

    found = list_presets()
    if as_json:
        echo_json([{"name": preset.name, "summary": preset.summary} for preset in found])
        return
    columns("Presets", ["name", "what it is"], [(preset.name, preset.summary) for preset in found])
    click.echo("Use one with: dba run --preset NAME")


def print_config(flags: ConfigFlags, *, as_json: bool) -> None:
    """What `dba config show` and `dba run --print-config` print."""
    from dba_cli.rendering import echo_json
    from dba_core.config.loading import render_toml

    loaded = flags.load()
    if as_json:
        echo_json({"config": loaded.config.to_dict(), "origins": loaded.origins})
        return
    click.echo(render_toml(loaded), nl=False)
