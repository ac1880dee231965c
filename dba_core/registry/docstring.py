"""What a module says of itself, read from its source without importing it: a listing runs nobody's code."""

from __future__ import annotations

import ast
import importlib.machinery
import sys
from collections.abc import Sequence

from dba_core.registry.contain import Failure, contain


def docstring_of(module: str) -> str | Failure | None:
    """Its docstring, None where it has none. A Failure where it is not there or is no Python."""
    return contain(lambda: ast.get_docstring(ast.parse(_source(module))))


def _source(module: str) -> str:
    """Package by package, since `importlib.util.find_spec` imports the packages above a module."""
    path: Sequence[str] | None = None
    loader, name = None, ""
    for part in module.split("."):
        name = f"{name}.{part}" if name else part
        spec = _spec(name, path)
        if spec is None:
            raise ModuleNotFoundError(f"there is no module {name}")
        path, loader = spec.submodule_search_locations, spec.loader
    return (loader.get_source(name) or "") if isinstance(loader, importlib.machinery.SourceFileLoader) else ""


def _spec(name: str, path: Sequence[str] | None) -> importlib.machinery.ModuleSpec | None:
    for finder in sys.meta_path:
        spec = finder.find_spec(name, path)
        if spec is not None:
            return spec
    return None
