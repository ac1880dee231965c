"""The floors of the architecture: each part imports only from its own floor and those under it.

Imports that only type checkers see are free: they cannot load anything.
"""

from __future__ import annotations

import pytest
from source_tree import PACKAGES, Import, imports, module_name, python_files

# Lowest first. A part is dba_core.X, or a whole package.
FLOORS = (
    (
        "dba_core.support",
        "dba_core.errors",
        "dba_core.printable",
        "dba_core.markdown",
        "dba_core.figures",
        "dba_core.documents",
        "dba_core.report",
        "dba_core.command",
        "dba_core.distribution",
        "dba_core.free_memory",
        "dba_core.checkpoint_source",
        "dba_core.contracts",
        "dba_core.hookspecs",
        "dba_core.kinds",
    ),
    ("dba_core.serialization",),
    ("dba_core.registry",),
    ("dba_core.config",),
    ("dba_core.cache", "dba_core.attention"),
    ("dba_core.model",),
    ("dba_core.data", "dba_core.training", "dba_core.generation", "dba_core.evaluation"),
    ("dba_core.runs", "dba_core.testing"),
    ("dba_cli",),
)
FLOOR_OF = {part: floor for floor, parts in enumerate(FLOORS) for part in parts}
#: Commands drive the rooms of the core; every other plugin needs the ground floor alone.
COMMANDS = tuple(f"dba_plugins.{name}" for name in ("bench", "checkpoints", "convert", "drift", "tune"))
PUBLIC_TO_PLUGINS = ("contracts", "hookspecs", "errors", "distribution", "serialization", "cache", "config")


def part_of(module: str) -> str:
    """dba_core.cache.layer.LayerCache -> dba_core.cache; dba_cli.main -> dba_cli."""
    names = module.split(".")
    return ".".join(names[:2]) if names[0] == "dba_core" else names[0]


def own_imports(package: str) -> list[tuple[str, Import]]:
    """(importing module, import) for everything of ours that a package imports at run time."""
    return [
        (module_name(path), found)
        for path in python_files(package)
        for found in imports(path)
        if found.target.split(".")[0] in PACKAGES and not found.types_only
    ]


def test_every_part_of_the_core_has_a_floor() -> None:
    parts = {part_of(module_name(path)) for path in python_files("dba_core")} - {"dba_core"}
    assert parts <= set(FLOOR_OF), f"put {sorted(parts - set(FLOOR_OF))} on a floor"


@pytest.mark.parametrize("package", ["dba_core", "dba_cli"])
def test_imports_go_down(package: str) -> None:
    upward = [
        f"{found.where} imports {found.target}"
        for module, found in own_imports(package)
        if module != "dba_core" and FLOOR_OF.get(part_of(found.target), -1) > FLOOR_OF[part_of(module)]
    ]
    assert not upward, "\n".join(upward)


def test_parts_of_one_floor_do_not_import_each_other_in_a_circle() -> None:
    edges = {(part_of(module), part_of(found.target)) for module, found in own_imports("dba_core")}
    circles = sorted((a, b) for a, b in edges if a < b and (b, a) in edges and "dba_core" not in (a, b))
    assert not circles


def test_core_reaches_neither_plugins_nor_cli() -> None:
    wrong = [
        found.where
        for _, found in own_imports("dba_core")
        if found.target.split(".")[0] in ("dba_plugins", "dba_cli")
    ]
    assert not wrong


def test_cli_reaches_plugins_only_through_the_registry() -> None:
    wrong = [
        found.where
        for _, found in own_imports("dba_cli")
        if found.target.startswith("dba_plugins") and not found.target.startswith(COMMANDS)
    ]
    assert not wrong


def test_plugins_import_only_public_names_of_the_core() -> None:
    wrong = []
    for module, found in own_imports("dba_plugins"):
        names = found.target.split(".")
        core = names[0] == "dba_core" and (names[1] in PUBLIC_TO_PLUGINS or module.startswith(COMMANDS))
        private = any(name.startswith("_") for name in names)
        if (not core and names[0] != "dba_plugins") or private:
            wrong.append(f"{found.where} imports {found.target}")
    assert not wrong, "\n".join(wrong)
