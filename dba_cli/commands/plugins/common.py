"""What the commands of `dba plugins` share: documents, and the kinds that a name can mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from dba_cli.failure import in_flags
from dba_core.contracts import Kind
from dba_core.kinds import KINDS, per_layer

if TYPE_CHECKING:
    from dba_core.registry import PluginInfo, Registry

KIND = click.Choice(tuple(KINDS))
KIND_OF_LAYERS = click.Choice(per_layer())


def kinds_with(registry: Registry, name: str, kind: Kind | None) -> list[Kind]:
    """The kinds that have a plugin of this name. Raises PluginError when there is none."""
    from dba_core.distribution import canonical
    from dba_core.errors import PluginError, unknown

    if kind is not None:
        return [kind]
    distribution, colon, plain = name.rpartition(":")
    infos = registry.list()
    found = {
        info.kind
        for info in infos
        if info.name == plain and (not colon or canonical(distribution) == canonical(info.distribution))
    }
    if not found:
        names = {info.qualified if colon else info.name for info in infos}
        raise PluginError(unknown("plugin", name, names))
    return [each for each in KINDS if each in found]


def needs_text(info: PluginInfo) -> str:
    """`llvmlite (not installed), numba`."""
    missing = info.missing
    return ", ".join(f"{name} (not installed)" if name in missing else name for name in info.needs)


def info_document(info: PluginInfo) -> dict[str, Any]:
    """What the metadata says, for JSON."""
    return {
        "kind": info.kind,
        "name": info.name,
        "distribution": info.distribution,
        "version": info.version,
        "module": info.module,
        "problem": info.problem and in_flags(info.problem),
        "needs": list(info.needs),
        "missing": list(info.missing),
    }
