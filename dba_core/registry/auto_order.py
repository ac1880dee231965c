"""The order in which `auto` tries plugins, from the entry-point group `dba.auto_order`.

An entry point names a mapping kind -> names, best first. Ours comes first, then other distributions' by name.
Called by `Registry.select` for `auto` only, because it imports the modules that hold the mappings.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from dba_core.contracts import KINDS, Kind
from dba_core.errors import unknown
from dba_core.registry.contain import Failure, contain
from dba_core.registry.discovery import canonical

#: The distribution whose order comes first.
OUR_DISTRIBUTION = "dba"


@attrs.frozen(kw_only=True)
class AutoOrder:
    """For each kind the plugins to try, as (name, distribution that lists it), and what could not be read."""

    names: dict[Kind, tuple[tuple[str, str], ...]]
    problems: tuple[str, ...] = ()

    def of(self, kind: Kind) -> tuple[tuple[str, str], ...]:
        return self.names[kind]


def read_auto_order(orders: Iterable[tuple[str, str]]) -> AutoOrder:
    """Import the mappings of `orders` (distribution, reference); a broken one is a problem, not an error."""
    names: dict[Kind, dict[tuple[str, str], None]] = {kind: {} for kind in KINDS}
    problems: list[str] = []
    for distribution, reference in sorted(orders, key=_rank):
        mapping = _read(reference)
        if isinstance(mapping, str):
            problems.append(f"the order {reference!r} of {distribution} cannot be used: {mapping}")
            continue
        for kind, listed in mapping.items():
            names[kind].update({(name, distribution): None for name in listed})
    return AutoOrder(names={kind: tuple(found) for kind, found in names.items()}, problems=tuple(problems))


def _rank(order: tuple[str, str]) -> tuple[bool, str, str]:
    distribution, reference = order
    return canonical(distribution) != OUR_DISTRIBUTION, canonical(distribution), reference


def _read(reference: str) -> dict[Kind, list[str]] | str:
    """The mapping that `reference` names, or why it cannot be used."""
    mapping = contain(lambda: _import(reference))
    if isinstance(mapping, Failure):
        return str(mapping)
    problem = _form_problem(mapping)
    return (
        problem if problem is not None else {kind: list(mapping[kind]) for kind in KINDS if kind in mapping}
    )


def _import(reference: str) -> Any:
    module, _, attribute = reference.partition(":")
    return functools.reduce(getattr, attribute.split("."), importlib.import_module(module))


def _form_problem(mapping: Any) -> str | None:
    if not isinstance(mapping, Mapping):
        return f"it is {mapping!r}, no mapping of kinds to names"
    for kind, names in mapping.items():
        if kind not in KINDS:
            return unknown("plugin kind", str(kind), KINDS)
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
            return f"{kind} has {names!r}; allowed: a list of plugin names"
    return None
