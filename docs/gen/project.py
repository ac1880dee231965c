"""Writes the parts of the pages that come from the repository's own files: changelog, requirements."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
MARKER = re.compile(r"^<!-- project: (changelog|requirements) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: object) -> str:
    """mkdocs calls this for every page before it is rendered."""
    return MARKER.sub(lambda match: GENERATORS[match.group(1)](), markdown)


def changelog() -> str:
    """CHANGELOG.md as it is."""
    return (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def requirements() -> str:
    """Python and the packages of pyproject.toml, each with the versions that are allowed."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    needs = [("Python", project["requires-python"], "always")]
    needs += [(*split(text), "always") for text in project["dependencies"]]
    for extra in ("triton", "cpu"):
        needs += [(*split(text), f"`{project['name']}[{extra}]`") for text in extras[extra]]
    lines = [("package", "versions", "needed"), ("---", "---", "---"), *needs]
    return "\n".join(f"| {name} | {versions} | {when} |" for name, versions, when in lines)


def split(requirement: str) -> tuple[str, str]:
    """`tomli>=2.0; python_version < '3.11'` -> its name, and the rest for a table's cell."""
    match = re.match(r"([\w.-]+)(.*)", requirement)
    assert match is not None
    return match[1], "`" + match[2].strip() + "`"


GENERATORS: dict[str, Callable[[], str]] = {"changelog": changelog, "requirements": requirements}
