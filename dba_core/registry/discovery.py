"""Which plugins are installed, from entry-point metadata alone: nothing is imported.

Broken metadata of one distribution is a problem of that one alone. Which packages a plugin needs beside its
distribution is metadata too: the group `dba.needs` has an entry point `KIND.NAME`
(or `KIND.NAME.MODULE`, for several) whose value is a top-level module.
"""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
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
    def key(self) -> tuple[Kind, str, str]:
        """What tells one plugin from every other."""
        return self.kind, canonical(self.distribution), self.name

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
    problems: list[str] = []
    for distribution, points in _with_our_entry_points(distributions, problems):
        name, version = _metadata(distribution, "Name"), _metadata(distribution, "Version") or "unknown"
        if name is not None:
            orders += [(name, point.value) for point in points if point.group == AUTO_ORDER_GROUP]
            plugins += _infos(points, name, version)
            continue
        # Shown under its path, and not to be used.
        path = _path(distribution)
        problems.append(f"{path}: its metadata are damaged, they have no Name; {_REINSTALL}")
        problem = f"the metadata of its distribution are damaged, they have no Name ({path}); {_REINSTALL}"
        plugins += [attrs.evolve(info, problem=problem, needs=()) for info in _infos(points, path, version)]
    plugins.sort(key=lambda info: (info.kind, info.name, info.distribution))
    return Discovery(plugins=_without_repeats(plugins), orders=tuple(orders), problems=tuple(problems))


def _with_our_entry_points(
    distributions: Iterable[Distribution], problems: list[str]
) -> list[tuple[Distribution, list[EntryPoint]]]:
    """Distribution and entry points of those that have any of ours. What cannot be read is added to problems.

    One without a name stands for itself. What an upgrade left behind of this library under its former name
    counts only where nothing else is.
    """
    groups = {*_kind_of_group(), AUTO_ORDER_GROUP, NEEDS_GROUP}
    found: dict[str, tuple[Distribution, list[EntryPoint]]] = {}
    for distribution in _each(distributions, problems):
        name = _metadata(distribution, "Name")
        points = contain(lambda d=distribution: [p for p in d.entry_points if p.group in groups])  # type: ignore[misc]
        if isinstance(points, Failure):
            problems.append(f"{name or _path(distribution)}: its entry points cannot be read ({points})")
        elif points:
            key = f"unnamed {len(found)}" if name is None else canonical(name)
            former = key in found and _metadata(found[key][0], "Name") == FORMER_NAME
            if key not in found or (former and name != FORMER_NAME):
                found[key] = (distribution, points)
    return list(found.values())


def name_problem(name: str) -> str | None:
    """Why `name` cannot name a plugin, None when it can."""
    if _NAME.fullmatch(name) and name != "auto":
        return None
    return f"{name!r} is no plugin name; allowed: letters, digits, '_', '-', '.', and not 'auto'"


def _kind_of_group() -> dict[str, Kind]:
    return {kind.group: kind.name for kind in KINDS.values()}


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


def _metadata(distribution: Distribution, field: str) -> str | None:
    """None where the metadata have none that can be read."""
    text = contain(lambda: distribution.metadata[field])
    return text.strip() or None if isinstance(text, str) else None


def _path(distribution: Distribution) -> str:
    """Where the metadata lie; what stands for a distribution without a name."""
    path = getattr(distribution, "_path", None)
    return f"a distribution of class {type(distribution).__name__}" if path is None else str(path)


def _infos(points: list[EntryPoint], distribution: str, version: str) -> Iterator[PluginInfo]:
    needs = [(point.name, point.value.strip()) for point in points if point.group == NEEDS_GROUP]
    for point in points:
        kind = _kind_of_group().get(point.group)
        if kind is None:
            continue
        module, key = point.value.partition("[")[0].strip(), f"{kind}.{point.name}"
        problem = name_problem(point.name)
        if problem is None and not _REFERENCE.fullmatch(module):
            problem = f"its entry point {point.value!r} is not a module or module:object"
        yield PluginInfo(
            kind=kind,
            name=point.name,
            distribution=distribution,
            version=version,
            module=module,
            problem=problem,
            needs=tuple(dict.fromkeys(need for name, need in needs if name in (key, f"{key}.{need}"))),
        )


def _is_installed(module: str) -> bool:
    """A top-level module; one whose finder fails is not there."""
    found = contain(lambda: importlib.util.find_spec(module) if module.isidentifier() else None)
    return found is not None and not isinstance(found, Failure)


def _without_repeats(plugins: list[PluginInfo]) -> tuple[PluginInfo, ...]:
    """One entry for each distribution and name; a name that one distribution lists twice is a problem."""
    found: dict[tuple[Kind, str, str], PluginInfo] = {}
    for info in plugins:
        first = found.setdefault(info.key, info)
        if first.module != info.module:
            problem = f"{info.distribution} lists it twice, as {first.module} and {info.module}"
            found[info.key] = attrs.evolve(info, problem=problem)
    return tuple(found.values())


def docstring_of(module: str) -> str | Failure | None:
    """What a module says of itself, read from its source without importing it; None where that is nothing. A
    Failure where it is not there or is no Python.
    """
    return contain(lambda: ast.get_docstring(ast.parse(_source(module))))


def _source(module: str) -> str:
    """Package by package, since `importlib.util.find_spec` imports the packages above a module."""
    path: Sequence[str] | None = None
    loader, name = None, ""
    for part in module.split("."):
        name = f"{name}.{part}" if name else part
        specs = (finder.find_spec(name, path) for finder in sys.meta_path)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is None:
            raise ModuleNotFoundError(f"there is no module {name}")
        path, loader = spec.submodule_search_locations, spec.loader
    return (loader.get_source(name) or "") if isinstance(loader, importlib.machinery.SourceFileLoader) else ""
