"""Which plugins are installed, from entry-point metadata alone: nothing is imported.

Broken metadata of one distribution is a problem of that one alone. Which packages a
plugin needs beside its distribution is metadata too: the group `dba.needs` has an entry point `KIND.NAME`
(or `KIND.NAME.MODULE`, for several) whose value is a top-level module.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, EntryPoint
from typing import Any

import attrs

from dba_core.contracts import Kind
from dba_core.distribution import FORMER_NAME, canonical
from dba_core.kinds import KINDS
from dba_core.registry.contain import Failure, contain

#: The entry-point group whose objects say in which order `auto` tries the plugins of each kind.
AUTO_ORDER_GROUP = "dba.auto_order"
#: The entry-point group that says which modules a plugin needs beside its own distribution.
NEEDS_GROUP = "dba.needs"

_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*(:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*)?")
_REINSTALL = "reinstall that distribution, or remove the folder"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@attrs.frozen(kw_only=True)
class PluginInfo:
    """One plugin as its distribution's metadata announces it. `module` may name an object: `pkg.mod:attr`.

    `problem` says why it cannot be used, where that is known; None does not promise that it loads. needs: the
    top-level modules without which it cannot run, as its distribution states them.
    """

    kind: Kind
    name: str
    distribution: str
    version: str
    module: str
    problem: str | None = None
    needs: tuple[str, ...] = ()

    @classmethod
    def of_object(
        cls, kind: Kind, plugin: Any, *, distribution: str = "local", version: str = "0"
    ) -> PluginInfo:
        """A plugin made in code."""
        stated = contain(lambda: plugin.name)
        name = stated if isinstance(stated, str) else "unnamed"
        module = f"{type(plugin).__module__}:{type(plugin).__qualname__}"
        return cls(kind=kind, name=name, distribution=distribution, version=version, module=module)

    @property
    def who(self) -> str:
        """The plugin as errors call it."""
        return f"{self.kind} {self.name!r} of {self.distribution} {self.version}"

    @property
    def missing(self) -> tuple[str, ...]:
        """Which of the modules that it needs are not installed here. Imports none."""
        return tuple(name for name in self.needs if not _is_installed(name))

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
    for distribution, points in found:
        name, version = _name(distribution), _version(distribution)
        if name is None:
            plugins += _damaged(points, _path(distribution), version)
            problems.append(
                f"{_path(distribution)}: its metadata are damaged, they have no Name; {_REINSTALL}"
            )
            continue
        orders += [(name, point.value) for point in points if point.group == AUTO_ORDER_GROUP]
        plugins += _infos(points, name, version)
    plugins.sort(key=lambda info: (info.kind, info.name, info.distribution))
    return Discovery(plugins=_without_repeats(plugins), orders=tuple(orders), problems=tuple(problems))


def _with_our_entry_points(
    distributions: Iterable[Distribution],
) -> tuple[list[tuple[Distribution, list[EntryPoint]]], list[str]]:
    """Distribution and entry points of those that have any of ours, and what could not be read.

    One without a name stands for itself. What an upgrade left behind of this library under its former name
    counts only where nothing else is.
    """
    found: dict[str, tuple[Distribution, list[EntryPoint]]] = {}
    problems: list[str] = []
    for distribution in _each(distributions, problems):
        points = contain(lambda d=distribution: _our_entry_points(d))  # type: ignore[misc]
        if isinstance(points, Failure):
            where = _name(distribution) or _path(distribution)
            problems.append(f"{where}: its entry points cannot be read ({points})")
            continue
        if not points:
            continue
        name = _name(distribution)
        key = f"unnamed {len(found)}" if name is None else canonical(name)
        if key not in found or (_name(found[key][0]) == FORMER_NAME and name != FORMER_NAME):
            found[key] = (distribution, points)
    return list(found.values()), problems


def name_problem(name: str) -> str | None:
    """Why `name` cannot name a plugin, None when it can."""
    if _NAME.fullmatch(name) and name != "auto":
        return None
    return f"{name!r} is no plugin name; allowed: letters, digits, '_', '-', '.', and not 'auto'"


def _kind_of_group() -> dict[str, Kind]:
    return {kind.group: kind.name for kind in KINDS.values()}


def _our_entry_points(distribution: Distribution) -> list[EntryPoint]:
    groups = {*_kind_of_group(), AUTO_ORDER_GROUP, NEEDS_GROUP}
    return [point for point in distribution.entry_points if point.group in groups]


def _each(distributions: Iterable[Distribution], problems: list[str]) -> Iterator[Distribution]:
    """The distributions up to where looking for them fails, which is a problem."""
    rest = iter(distributions)
    while True:
        found = contain(lambda: next(rest, None))
        if isinstance(found, Failure):
            problems.append(f"looking for distributions failed ({found}); those after it are not known")
        if found is None or isinstance(found, Failure):
            return
        yield found


def _name(distribution: Distribution) -> str | None:
    """None: the metadata have no name that can be read."""
    name = contain(lambda: distribution.metadata["Name"])
    return name.strip() if isinstance(name, str) and name.strip() else None


def _path(distribution: Distribution) -> str:
    """Where the metadata lie; what stands for a distribution without a name."""
    path = getattr(distribution, "_path", None)
    return f"a distribution of class {type(distribution).__name__}" if path is None else str(path)


def _version(distribution: Distribution) -> str:
    version = contain(lambda: distribution.metadata["Version"])
    return version if isinstance(version, str) and version else "unknown"


def _infos(points: list[EntryPoint], distribution: str, version: str) -> list[PluginInfo]:
    needs = [(point.name, point.value.strip()) for point in points if point.group == NEEDS_GROUP]
    found = [_info(point, distribution, version) for point in points if point.group in _kind_of_group()]
    return [attrs.evolve(info, needs=_needs_of(info, needs)) for info in found]


def _needs_of(info: PluginInfo, needs: list[tuple[str, str]]) -> tuple[str, ...]:
    """The modules that the entry points `KIND.NAME` and `KIND.NAME.MODULE` name."""
    key = f"{info.kind}.{info.name}"
    return tuple(dict.fromkeys(module for name, module in needs if name in (key, f"{key}.{module}")))


def _damaged(points: list[EntryPoint], path: str, version: str) -> list[PluginInfo]:
    """The plugins of a distribution without a name: shown under its path, and not to be used."""
    problem = f"the metadata of its distribution are damaged, they have no Name ({path}); {_REINSTALL}"
    return [attrs.evolve(info, problem=problem, needs=()) for info in _infos(points, path, version)]


def _is_installed(module: str) -> bool:
    """A top-level module; one whose finder fails is not there."""
    found = contain(lambda: importlib.util.find_spec(module) if module.isidentifier() else None)
    return found is not None and not isinstance(found, Failure)


def _info(point: EntryPoint, distribution: str, version: str) -> PluginInfo:
    module = point.value.partition("[")[0].strip()
    problem = name_problem(point.name)
    if problem is None and not _REFERENCE.fullmatch(module):
        problem = f"its entry point {point.value!r} is not a module or module:object"
    return PluginInfo(
        kind=_kind_of_group()[point.group],
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
