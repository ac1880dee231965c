"""The pages say everything: built-ins, environment variables; TOML blocks load."""

from __future__ import annotations

import importlib.util
import re
import types
from pathlib import Path

import pytest

from dba_core.config.loading import load_config
from dba_core.kinds import KINDS
from dba_core.registry import Registry

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
BUILT_INS = [(info.kind, info.name) for info in Registry().list() if info.distribution == "dba-attention"]


def module_at(path: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def toml_blocks() -> list[object]:
    """Blocks of pages, those of a package's pyproject.toml left out."""
    found = []
    for page in PAGES:
        for number, body in enumerate(
            re.findall(r"^```toml\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S)
        ):
            if "[project" not in body:
                found.append(pytest.param(body, id=f"{page.relative_to(ROOT)}-{number}"))
    return found


@pytest.mark.parametrize("body", toml_blocks())
def test_toml_blocks_are_configurations(body: str, tmp_path: Path) -> None:
    path = tmp_path / "block.toml"
    path.write_text(body, encoding="utf-8")
    assert set(load_config(file=path).origins.values()) != {"default"}


def environment_variables() -> set[str]:
    """Names that the packages read: of ours by their prefix, of others where a literal is asked for."""
    sources = [
        path.read_text("utf-8")
        for package in ("dba_core", "dba_cli", "dba_plugins")
        for path in (ROOT / package).rglob("*.py")
    ]
    ours = {name for text in sources for name in re.findall(r'"(DBA_[A-Z]+(?:_[A-Z]+)*)"', text)}
    asked = r"""(?:environ\.get\(|environ\[|environ\.setdefault\(|getenv\(|environ, )["']([A-Z_]+)["']"""
    return ours | {name for text in sources for name in re.findall(asked, text)}


def test_every_environment_variable_is_documented() -> None:
    names = environment_variables()
    page = (DOCS / "reference" / "environment.md").read_text("utf-8")
    assert {"DBA_PLUGINS_ALLOW", "WORLD_SIZE"} <= names
    assert not {name for name in names if f"`{name}" not in page}


@pytest.mark.parametrize(("kind", "name"), BUILT_INS)
def test_every_built_in_has_its_page(kind: str, name: str) -> None:
    page = DOCS / "gallery" / f"{kind.replace('_', '-')}-{name.replace('_', '-')}.md"
    text = page.read_text("utf-8")
    assert f"<!-- plugin: {kind} {name} -->" in text
    assert f'name = "{name}"' in text or not KINDS[kind].per_layer
    assert f"({page.name})" in (DOCS / "gallery" / "index.md").read_text("utf-8")


@pytest.mark.torch
def test_the_support_matrix_is_current() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("llvmlite")  # the page is for an installation with every extra
    written = module_at(DOCS / "gen" / "support_matrix.py")
    assert written.PAGE.read_text("utf-8") == written.page(), "run: python docs/gen/support_matrix.py"


def test_heads_of_gallery_pages_come_from_the_source() -> None:
    pytest.importorskip("mkdocs")
    text = module_at(DOCS / "gen" / "gallery.py").plugin_page("summarizer", "conv")
    assert "| `kernel_size` | `int` | `3` |" in text
    assert "residual(x[n]) = (1/L) sum_l silu(" in text
    static = module_at(DOCS / "gen" / "gallery.py").plugin_page("gate", "static")
    assert "| `init` | `float` | `0.5` |" in static  # from the module beside it


def test_pages_about_the_project_come_from_its_files() -> None:
    text = module_at(DOCS / "gen" / "project.py").on_page_markdown("<!-- project: requirements -->")
    assert "| Python | >=3.10 | always |" in text
    assert "| llvmlite | `>=0.44` | `dba-attention[cpu]` |" in text
    assert "## [Unreleased]" in module_at(DOCS / "gen" / "project.py").on_page_markdown(
        "<!-- project: changelog -->"
    )
