"""The corpus `docstrings`: the documentation strings of the standard library, module by module.

English about software, about two megabytes, no download, and another text than `pydoc`. It is read from the
source files without running them, so it depends on the Python version, which the corpus states. Called by the
corpus.
"""

from __future__ import annotations

import ast
import platform
import sysconfig
from pathlib import Path

from dba_core.data.text_sources import KEY, TextSource
from dba_core.errors import DataError

#: Folders of the standard library that hold no documentation of it, or other distributions.
_LEFT_OUT = ("site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "pydoc_data")
_LEAST = 40  # characters: shorter ones say little


def read_docstrings() -> TextSource:
    """One document per source file, in the order of their paths; strings that repeat are taken once."""
    root = Path(sysconfig.get_path("stdlib"))
    seen: set[str] = set()
    texts: dict[str, str] = {}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if any(part in _LEFT_OUT for part in name.parts):
            continue
        strings = [text for text in _strings(path) if len(text) >= _LEAST and text not in seen]
        seen.update(strings)
        if strings:
            texts[name.as_posix()] = "\n\n".join(dict.fromkeys(strings))
    if not texts:
        raise DataError(
            f"this Python has no source files of its standard library in {root}; give a text file's path",
            path=KEY,
        )
    return TextSource.join("docstrings", texts, version=f"Python {platform.python_version()}")


def _strings(path: Path) -> list[str]:
    """The documentation strings of a file in the order of its lines; none for one that is no Python."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return []
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, owners)]
    return [text for text in found if text]
