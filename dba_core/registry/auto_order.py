"""The order in which `auto` tries plugins, from the entry-point group `dba.auto_order`.

An entry point names a mapping kind -> names, best first, or kind -> {device type: names} where the best one
depends on the device ("*" stands for all others). Ours comes first, then other distributions' by name.
Called by `Registry.select` for `auto` only, because it imports the modules that hold the mappings.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import attrs

from dba_core.contracts import Kind
from dba_core.distribution import NAME, canonical
from dba_core.errors import unknown
from dba_core.kinds import per_layer
from dba_core.registry.contain import Failure, contain
from dba_core.registry.surroundings import kept_surroundings

#: Stands for every device that has no order of its own.
ANY_DEVICE = "*"

#: kind -> device type -> names, best first.
_Mapping: TypeAlias = dict[Kind, dict[str, tuple[str, ...]]]


@attrs.frozen(kw_only=True)
class AutoOrder:
    """What each distribution lists, ours first, and what could not be read."""

    listed: tuple[tuple[str, _Mapping], ...]
    problems: tuple[str, ...] = ()

    def of(self, kind: Kind, *, device: str) -> tuple[tuple[str, str], ...]:
        """The plugins to try on this device ("cuda:0"), as (name, distribution that lists it)."""
        found: dict[tuple[str, str], None] = {}
        for distribution, mapping in self.listed:
            by_device = mapping.get(kind, {})
            names = by_device.get(device.partition(":")[0], by_device.get(ANY_DEVICE, ()))
            found.update({(name, distribution): None for name in names})
        return tuple(found)


def read_auto_order(orders: Iterable[tuple[str, str]]) -> AutoOrder:
    """Import the mappings of `orders` (distribution, reference); a broken one is a problem, not an error."""
    listed: list[tuple[str, _Mapping]] = []
    problems: list[str] = []
    for distribution, reference in sorted(orders, key=_rank):
        mapping = _read(reference)
        if isinstance(mapping, str):
            problems.append(f"the order {reference!r} of {distribution} cannot be used: {mapping}")
            continue
        listed.append((distribution, mapping))
    return AutoOrder(listed=tuple(listed), problems=tuple(problems))


def _rank(order: tuple[str, str]) -> tuple[bool, str, str]:
    distribution, reference = order
    return canonical(distribution) != NAME, canonical(distribution), reference


def _read(reference: str) -> _Mapping | str:
    """The mapping that `reference` names, or why it cannot be used."""
    with kept_surroundings():
        mapping = contain(lambda: _checked(_import(reference)))
    return str(mapping) if isinstance(mapping, Failure) else mapping


def _checked(mapping: Any) -> _Mapping | str:
    """The mapping as plain data, or why it is none. A foreign one may raise anything."""
    problem = _form_problem(mapping)
    if problem is not None:
        return problem
    return {
        kind: {device: tuple(names) for device, names in _by_device(mapping[kind]).items()}
        for kind in per_layer()
        if kind in mapping
    }


def _by_device(listed: Any) -> Mapping[Any, Any]:
    return listed if isinstance(listed, Mapping) else {ANY_DEVICE: listed}


def _import(reference: str) -> Any:
    module, _, attribute = reference.partition(":")
    return functools.reduce(getattr, attribute.split("."), importlib.import_module(module))


def _form_problem(mapping: Any) -> str | None:
    if not isinstance(mapping, Mapping):
        return f"it is {mapping!r}, no mapping of kinds to names"
    for kind, listed in mapping.items():
        if kind not in per_layer():
            return unknown("plugin kind", str(kind), per_layer())
        for device, names in _by_device(listed).items():
            named = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
            if not named or not isinstance(device, str):
                return f"{kind} has {listed!r}; allowed: a list of plugin names, or one per device type"
    return None
