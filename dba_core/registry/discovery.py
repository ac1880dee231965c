"""Which plugins are installed, from entry-point metadata alone: nothing is imported.

Called by `Registry`. Broken metadata of one distribution is a problem of that one alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.metadata import Distribution, EntryPoint

import attrs

from dba_core.contracts import ENTRY_POINT_GROUPS, Kind
from dba_core.distribution import FORMER_NAME, canonical
from dba_core.registry.contain import Failure, contain

#: The entry-point group whose objects say in which order `auto` tries the plugins of each kind.
AUTO_ORDER_GROUP = "dba.auto_order"

_KIND_OF_GROUP: dict[str, Kind] = {group: kind for kind, group in ENTRY_POINT_GROUPS.items()}
_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*(:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*)?")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@attrs.frozen(kw_only=True)
class PluginInfo:
    """One plugin as its distribution's metadata announces it. `module` may name an object: `pkg.mod:attr`.

    `problem` says why it cannot be used, where that is known; None does not promise that it loads.
    """

    kind: Kind
    name: str
    distribution: str
    version: str
    module: str
    problem: str | None = None

    @property
    def qualified(self) -> str:
        """`distribution:name`, which stays unique where two distributions use one name."""
        return f"{self.distribution}:{self.name}"


@attrs.frozen(kw_only=True)
class Discovery:
    """What the metadata says: plugins, auto orders (distribution, reference) and what could not be read."""

    plugins: tuple[PluginInfo, ...] = ()
    orders: tuple[tuple[str, str], ...] = ()
    problems: tuple[str, ...] = ()


def discover(distributions: Iterable[Distribution]) -> Discovery:
    """Read the entry points of `distributions`; of two with one name the first on the path counts."""
    plugins: list[PluginInfo] = []
    orders: list[tuple[str, str]] = []
    found, problems = _with_our_entry_points(distributions)
    for name, distribution, points in found:
        version = _version(distribution)
        for point in points:
            if point.group == AUTO_ORDER_GROUP:
                orders.append((name, point.value))
            else:
                plugins.append(_info(point, name, version))
    plugins.sort(key=lambda info: (info.kind, info.name, info.distribution))
    return Discovery(plugins=_without_repeats(plugins), orders=tuple(orders), problems=tuple(problems))


def _with_our_entry_points(
    distributions: Iterable[Distribution],
) -> tuple[list[tuple[str, Distribution, list[EntryPoint]]], list[str]]:
    """Name, distribution and entry points of those that have any of ours, and what could not be read.

    What an upgrade left behind of this library under its former name counts only where nothing else is.
    """
    found: dict[str, tuple[str, Distribution, list[EntryPoint]]] = {}
    problems: list[str] = []
    for distribution in distributions:
        points = contain(lambda d=distribution: _our_entry_points(d))  # type: ignore[misc]
        if isinstance(points, Failure):
            problems.append(f"{_name(distribution)}: its entry points cannot be read ({points})")
            continue
        if not points:
            continue
        name = _name(distribution)
        first = found.get(canonical(name))
        if first is None or (first[0] == FORMER_NAME and name != FORMER_NAME):
            found[canonical(name)] = (name, distribution, points)
    return list(found.values()), problems


def name_problem(name: str) -> str | None:
    """Why `name` cannot name a plugin, None when it can."""
    if _NAME.fullmatch(name) and name != "auto":
        return None
    return f"{name!r} is no plugin name; allowed: letters, digits, '_', '-', '.', and not 'auto'"


def _our_entry_points(distribution: Distribution) -> list[EntryPoint]:
    groups = {*_KIND_OF_GROUP, AUTO_ORDER_GROUP}
    return [point for point in distribution.entry_points if point.group in groups]


def _name(distribution: Distribution) -> str:
    name = contain(lambda: distribution.metadata["Name"])
    return name if isinstance(name, str) and name else "unknown"


def _version(distribution: Distribution) -> str:
    version = contain(lambda: distribution.metadata["Version"])
    return version if isinstance(version, str) and version else "unknown"


def _info(point: EntryPoint, distribution: str, version: str) -> PluginInfo:
    module = point.value.partition("[")[0].strip()
    problem = name_problem(point.name)
    if problem is None and not _REFERENCE.fullmatch(module):
        problem = f"its entry point {point.value!r} is not a module or module:object"
    return PluginInfo(
        kind=_KIND_OF_GROUP[point.group],
        name=point.name,
        distribution=distribution,
        version=version,
        module=module,
        problem=problem,
    )


def _without_repeats(plugins: list[PluginInfo]) -> tuple[PluginInfo, ...]:
    """One entry for each distribution and name; a name that one distribution lists twice is a problem."""
    found: dict[tuple[Kind, str, str], PluginInfo] = {}
    for info in plugins:
        key = (info.kind, canonical(info.distribution), info.name)
        if key in found and found[key].module != info.module:
            problem = f"{info.distribution} lists it twice, as {found[key].module} and {info.module}"
            found[key] = attrs.evolve(info, problem=problem)
        else:
            found.setdefault(key, info)
    return tuple(found.values())
