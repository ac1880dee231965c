"""The floors of the architecture: a file imports from its own floor and those under it; files form no circle.

Imports inside functions count too. Those that only type checkers see count between packages; inside one they
are free: they load nothing, and the package is one room.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import pytest
from source_tree import PACKAGES, ROOT, imports, module_name, python_files

# Lowest first. A part is dba_core.X, or a whole package.
FLOORS = (
    ("support", "errors", "printable", "documents", "distribution", "free_memory"),
    ("contracts", "checkpoint_source", "kv_contracts", "weight_contracts"),
    ("report", "command"),
    ("hookspecs", "kinds"),
    ("serialization",),
    ("registry",),
    ("config",),
    ("cache", "attention"),
    ("model",),
    ("data", "training", "generation", "evaluation"),
    ("runs",),
    ("testing",),
)
FLOOR_OF = {f"dba_core.{part}": floor for floor, parts in enumerate(FLOORS) for part in parts}
#: What a plugin may import of the core: `serialization` for its options, `distribution` for the name of the
#: extra that is missing.
GIVEN_TO_PLUGINS = ("contracts", "hookspecs", "errors", "support", "serialization", "distribution")
#: How blocks and 4-bit codes lie in the planes of a cache; formats and kernels share it.
PUBLIC_MODULES = ("dba_core.cache.blocks",)
#: Plugins that drive the rooms of the core, by their public names.
DRIVERS = tuple(f"dba_plugins.{name}" for name in ("bench", "checkpoints", "convert", "drift", "tune"))

Edges = dict[str, set[str]]


def part_of(module: str) -> str:
    """dba_core.cache.layer -> dba_core.cache; dba_cli.main -> dba_cli."""
    names = module.split(".")
    return ".".join(names[:2]) if names[0] == "dba_core" else names[0]


@functools.cache
def edges() -> Edges:
    """For each module of ours the modules of ours that it imports."""
    modules = {module_name(path) for path in python_files(*PACKAGES)}
    found: Edges = {}
    for path in python_files(*PACKAGES):
        importing = module_name(path)
        found[importing] = set()
        for each in imports(path):
            imported = _module_of(each.target, modules)
            if imported is None or imported == importing:
                continue
            if not each.types_only or part_of(imported) != part_of(importing):
                found[importing].add(imported)
    return found


def _module_of(target: str, modules: set[str]) -> str | None:
    """dba_core.cache.layer.LayerCache -> dba_core.cache.layer; None for what is not ours."""
    while target not in modules:
        target, dot, _ = target.rpartition(".")
        if not dot:
            return None
    return target


def pairs() -> Iterator[tuple[str, str]]:
    """(importing, imported), but for the package of the public names, which names every room."""
    for importing, imported in edges().items():
        if importing != "dba_core":
            yield from ((importing, each) for each in imported if each != "dba_core")


def upward() -> set[tuple[str, str]]:
    """Pairs of the core whose imported part is on a higher floor, or not of the core."""
    core = [(a, b) for a, b in pairs() if a.startswith("dba_core.")]
    return {(a, b) for a, b in core if FLOOR_OF.get(part_of(b), len(FLOORS)) > FLOOR_OF[part_of(a)]}


def in_a_circle() -> set[tuple[str, str]]:
    """Pairs within one strongly connected component of files."""
    component = _components({a: {b for b in bs if b != "dba_core"} for a, bs in edges().items()})
    return {(a, b) for a, b in pairs() if component[a] == component[b]}


def _components(graph: Edges) -> dict[str, int]:
    """The number of each node's strongly connected component, by Kosaraju's two passes."""
    order: list[str] = []
    backward: Edges = {node: set() for node in graph}
    for node, others in graph.items():
        for other in others:
            backward[other].add(node)
    seen: set[str] = set()
    for node in graph:
        _visit(node, graph, seen, order)
    component: dict[str, int] = {}
    seen = set()
    for number, node in enumerate(reversed(order)):
        members: list[str] = []
        _visit(node, backward, seen, members)
        component.update(dict.fromkeys(members, number))
    return component


def _visit(node: str, graph: Edges, seen: set[str], done: list[str]) -> None:
    """Adds to `done` what can be reached from the node, a node after all that it leads to."""
    if node not in seen:
        seen.add(node)
        for other in sorted(graph[node]):
            _visit(other, graph, seen, done)
        done.append(node)


def private_to_plugins() -> set[tuple[str, str]]:
    """Pairs of a plugin and what it may not import. Drivers may import any public name of the core."""
    found = set()
    for importing, imported in pairs():
        names = imported.split(".")
        if not importing.startswith("dba_plugins.") or names[0] == "dba_plugins":
            continue
        given = names[1] in GIVEN_TO_PLUGINS or imported in PUBLIC_MODULES or importing.startswith(DRIVERS)
        allowed = names[0] == "dba_core" and given
        if not allowed or any(name.startswith("_") for name in names):
            found.add((importing, imported))
    return found


def past_the_registry() -> set[tuple[str, str]]:
    return {(a, b) for a, b in pairs() if a.startswith("dba_cli") and b.startswith("dba_plugins")}


def told(found: set[tuple[str, str]]) -> str:
    return "\n".join(f"{importing} imports {imported}" for importing, imported in sorted(found))


def test_every_part_of_the_core_has_a_floor() -> None:
    parts = {part_of(module) for module in edges() if module.startswith("dba_core.")}
    assert parts <= set(FLOOR_OF), f"put {sorted(parts - set(FLOOR_OF))} on a floor"
    assert set(FLOOR_OF) <= parts, f"gone: {sorted(set(FLOOR_OF) - parts)}"


RULES = [
    pytest.param(upward, id="imports go down"),
    pytest.param(in_a_circle, id="no circle of files"),
    pytest.param(private_to_plugins, id="plugins need little of the core"),
    pytest.param(past_the_registry, id="dba_cli has plugins of the registry"),
]


@pytest.mark.parametrize("rule", RULES)
def test_imports(rule: Callable[[], set[tuple[str, str]]]) -> None:
    assert not rule(), told(rule())


def test_a_circle_is_seen() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"a"}}
    component = _components(graph)
    assert component["b"] == component["c"]
    assert len(set(component.values())) == 4


def test_the_source_is_read_as_it_stands() -> None:
    assert "dba_core.support" in edges()["dba_core.contracts"]
    assert "dba_cli.commands.plugins.list" not in edges()["dba_cli.commands.plugins"]  # by name, when called
    assert (ROOT / "dba_core" / "kinds.py").exists()
