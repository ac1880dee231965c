"""`dba config`: show a configuration with the origin of every value, check a file, compare two, list presets.

No torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from dba_cli import completion
from dba_cli.failure import in_flags
from dba_cli.groups import HintingGroup
from dba_cli.options import config_options, json_option
from dba_cli.output.terminal import echo
from dba_core.runs.choosing import ConfigChoice

if TYPE_CHECKING:
    from dba_core.config.run import RunConfig


@click.group(cls=HintingGroup)
def config() -> None:
    """Show, check and compare configurations; list presets."""


@config.command()
@config_options
@json_option
def show(flags: ConfigChoice, as_json: bool) -> None:
    """Show every value and where it came from; the output can be given back with --config.

    \b
    Examples:
      dba config show --preset shakespeare-cpu
      dba config show --set training.steps=50 > my.toml
    """
    print_config(flags, as_json=as_json)


@config.command()
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def check(file: Path, as_json: bool) -> None:
    """Check that FILE (.toml or .json) is a valid configuration. Exit code 3 says that it is not.

    \b
    Example:
      dba config show > my.toml && dba config check my.toml
    """
    from dba_cli.output.rendering import echo_json
    from dba_core.config.loading import DEFAULT_ORIGIN, load_config

    loaded = load_config(file=file)
    given = sorted(key for key, origin in loaded.origins.items() if origin != DEFAULT_ORIGIN)
    if as_json:
        echo_json({"file": str(file), "valid": True, "sets": given})
        return
    echo(f"{file} is valid; it sets {', '.join(given) or 'nothing'}.")


@config.command()
@json_option
def presets(as_json: bool) -> None:
    """List the presets.

    \b
    Example:
      dba config presets
    """
    from dba_cli.output.rendering import columns, echo_json
    from dba_core.config.loading import list_presets

    found = list_presets()
    if as_json:
        echo_json([{"name": preset.name, "summary": preset.summary} for preset in found])
        return
    columns("Presets", ["name", "what it is"], [(preset.name, preset.summary) for preset in found])
    echo("Use one with: dba run --preset NAME")


@config.command()
@click.argument("a", metavar="A", shell_complete=completion.configurations)
@click.argument("b", metavar="B", shell_complete=completion.configurations)
@json_option
def diff(a: str, b: str, as_json: bool) -> int:
    """Compare two configurations key by key. Exit code 0: the same, 1: they differ.

    A and B are each a .toml or .json file, a run (its folder, a part of its name under runs/, or 'latest'),
    or 'preset:NAME'. What a file leaves out has its default.

    
    Examples:
      dba config diff preset:default preset:shakespeare-cpu
      dba config diff latest my.toml --json
    """
    from dba_cli.output.rendering import columns, echo_json

    first, second = _leaves(_configuration(a)), _leaves(_configuration(b))
    keys = [key for key in {**first, **second} if _text(first, key) != _text(second, key)]
    if as_json:
        rows = [
            {
                "key": key,
                "a": first.get(key),
                "b": second.get(key),
                "only_in": None if key in first and key in second else "a" if key in first else "b",
            }
            for key in keys
        ]
        echo_json({"a": a, "b": b, "same": not keys, "differences": rows})
    elif keys:
        columns("Differences", ["key", a, b], [(key, _text(first, key), _text(second, key)) for key in keys])
    else:
        echo("The two configurations are the same.")
    return 1 if keys else 0


def _leaves(config: RunConfig) -> dict[str, Any]:
    """By dotted key, without empty tables of options."""
    from dba_core.config.layers import flatten

    leaves = {".".join(path): setting.value for path, setting in flatten(config.to_dict(), "").items()}
    return {key: value for key, value in leaves.items() if value != {}}


def _text(leaves: Mapping[str, Any], key: str) -> str:
    """As JSON, in which 1 and true, and 1 and 1.0, are not the same."""
    return json.dumps(leaves[key], ensure_ascii=False) if key in leaves else "not there"


def _configuration(text: str) -> RunConfig:
    """What A or B means."""
    from dba_core.config.loading import list_presets, load_config
    from dba_core.errors import UsageError
    from dba_core.runs.folder import find_run

    kind, colon, name = text.partition(":")
    if colon and kind == "preset":
        return load_config(preset=name).config
    path = Path(text)
    if text in {preset.name for preset in list_presets()} and not path.exists():
        raise UsageError(f"{text!r} is a preset: write preset:{text}")
    is_file = path.suffix.lower() in (".toml", ".json") and not path.is_dir()
    return load_config(file=path if is_file else find_run(text).config_file).config


def print_config(flags: ConfigChoice, *, as_json: bool) -> None:
    """What `dba config show` and `dba run --print-config` print."""
    from dba_cli.output.config_toml import render_toml
    from dba_cli.output.rendering import echo_json, echo_toml

    loaded = flags.load()
    origins = {key: in_flags(origin) for key, origin in loaded.origins.items()}
    if as_json:
        echo_json({"config": loaded.config.to_dict(), "origins": origins})
        return
    echo_toml(render_toml(attrs.evolve(loaded, origins=origins)))
