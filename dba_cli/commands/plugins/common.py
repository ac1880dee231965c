"""What the commands of `dba plugins` share: options, documents, and the kinds that a name can mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from dba_core.contracts import KINDS, Kind

if TYPE_CHECKING:
    from dba_core.registry import PluginInfo, Registry

KIND = click.Choice(KINDS)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


def kinds_with(registry: Registry, name: str, kind: Kind | None) -> list[Kind]:
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


def info_document(info: PluginInfo) -> dict[str, Any]:
    """What the metadata says, for JSON."""
    return {
        "kind": info.kind,
        "name": info.name,
        "distribution": info.distribution,
        "version": info.version,
        "module": info.module,
        "problem": info.problem,
    }


def _is_named(info: PluginInfo, name: str) -> bool:
    return name in (info.name, info.qualified)
