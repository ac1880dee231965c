"""Reads the repository's own source by `ast`, for the tests beside it: files, modules, imports."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("dba_core", "dba_plugins", "dba_cli")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@attrs.frozen
class Import:
    """One imported module or name, as `a.b` or `a.b.name`, where it stands, whether it is for types only."""

    target: str
    where: str
    types_only: bool


def python_files(*folders: str) -> list[Path]:
    """Every Python file under the given top-level folders."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    """dba_core/cache/layer.py -> dba_core.cache.layer; a package's __init__.py -> the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def place(path: Path, node: ast.AST) -> str:
    """File and line, as an editor takes them."""
    line = node.lineno if isinstance(node, ast.stmt | ast.expr | ast.excepthandler) else 1
    return f"{path.relative_to(ROOT)}:{line}"


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(path: Path) -> list[Import]:
    """Every import of a file, those inside functions included. `from a.b import c` gives `a.b.c`."""
    tree = parse(path)
    for_types = {id(node) for block in _type_checking_blocks(tree) for node in ast.walk(block)}
    return [
        Import(target, place(path, node), id(node) in for_types)
        for node in ast.walk(tree)
        for target in _targets(node)
    ]


def _targets(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        if node.level:
            raise AssertionError(f"line {node.lineno}: relative import; write the full name")
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _type_checking_blocks(tree: ast.Module) -> Iterator[ast.stmt]:
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            yield from node.body
