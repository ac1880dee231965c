"""What the packaging files say about each other and about the source: entry points, data, dependencies."""

from __future__ import annotations

import ast
import re
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
from source_tree import PACKAGES, PYPROJECT, ROOT, imports, module_name, parse, python_files

from dba_core.distribution import NAME

SOURCE = python_files(*PACKAGES)

# What our entry points name; the values of dba.needs are other people's packages.
REFERENCES = [
    value
    for name, group in PYPROJECT["project"]["entry-points"].items()
    for value in group.values()
    if name != "dba.needs"
]

#: The module of whose objects each is a plugin.
OF_OBJECTS = {"dba_plugins.kv_formats.plugins", "dba_plugins.weights.plugins"}

# What is imported under another name than it is installed under.
DISTRIBUTION_OF = {"tomllib": "tomli", "mpl_toolkits": "matplotlib"}


@pytest.mark.parametrize(
    "target",
    [
        *PYPROJECT["project"]["scripts"].values(),
        *REFERENCES,
    ],
)
def test_entry_points_name_existing_modules(target: str) -> None:
    module, _, name = target.partition(":")
    path = ROOT / Path(*module.split("."))
    file = path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"
    assert file.exists(), f"{target}: no such module"
    assert not name or re.search(rf"^(def {name}\b|{name}\b)", file.read_text(encoding="utf-8"), re.MULTILINE)


def test_every_plugin_module_has_an_entry_point() -> None:
    hooked = {
        module_name(path)
        for path in python_files("dba_plugins")
        for node in ast.walk(parse(path))
        if isinstance(node, ast.FunctionDef) and "hookimpl" in map(ast.unparse, node.decorator_list)
    }
    assert hooked == {value for value in REFERENCES if ":" not in value} | OF_OBJECTS


def test_package_data_covers_every_file_that_is_no_code() -> None:
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]
    for package in PACKAGES:
        packed = {path for pattern in patterns[package] for path in (ROOT / package).glob(pattern)}
        rest = {path for path in (ROOT / package).rglob("*") if path.is_file()} - packed
        assert ROOT / package / "py.typed" in packed
        assert {path.suffix for path in rest} <= {".py", ".pyc"}


def requirement_names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\s\[<>=!~;]", requirement, maxsplit=1)[0].lower() for requirement in requirements}


def declared() -> set[str]:
    return requirement_names(PYPROJECT["project"]["dependencies"])


def test_imports_and_declared_dependencies_agree() -> None:
    optional = {"triton", "llvmlite", "tokenizers", "tiktoken"}
    optional |= {"flash_attn", "flashinfer"}  # `dba bench decode` measures them where they are installed
    used = {
        DISTRIBUTION_OF.get(name, name)
        for path in SOURCE
        for found in imports(path)
        if (name := found.target.split(".")[0]) not in PACKAGES
        and (name not in sys.stdlib_module_names or name in DISTRIBUTION_OF)
    }
    assert used - optional == declared()


def test_constraints_pin_what_is_named() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.partition("==")[0] for line in lines if line and not line.startswith("#")}
    extras = {name for group in PYPROJECT["project"]["optional-dependencies"].values() for name in group}
    unpinned = (declared() | requirement_names(sorted(extras))) - pinned - {"triton", "dba-attention"}
    assert not unpinned


def test_tox_installs_the_declared_dependencies_without_torch() -> None:
    tox = ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini", encoding="utf-8")
    extras = PYPROJECT["project"]["optional-dependencies"]

    def deps(section: str) -> set[str]:
        lines = [line for line in tox[section]["deps"].split("\n") if line.strip() and "{[" not in line]
        return requirement_names([line.strip() for line in lines])

    assert deps("without_torch") == declared() - {"torch"}
    assert deps("testenv:py3{10,12,13}") == requirement_names(extras["test"])
    assert deps("testenv:docs") == requirement_names(extras["docs"])
    assert deps("testenv:lint") == requirement_names(extras["lint"])


def test_every_dependency_has_its_reason_in_the_docs() -> None:
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    missing = {name for name in declared() if f"| `{name}` |" not in page}
    assert not missing


def test_the_distribution_has_the_name_that_the_code_asks_for() -> None:
    assert PYPROJECT["project"]["name"] == NAME == "dba-attention"
    (dev,) = (each for each in PYPROJECT["project"]["optional-dependencies"]["dev"] if "[" in each)
    assert dev.startswith(f"{NAME}[")


def test_only_one_module_knows_how_to_install_the_library() -> None:
    saying = [
        path.relative_to(ROOT).as_posix()
        for path in SOURCE
        if re.search(r"pip install\b.*\[(cpu|triton|gguf|bench|tokenizers|\{)", path.read_text("utf-8"))
    ]
    assert saying == ["dba_core/distribution.py"]


def test_what_the_hint_names_is_what_pip_knows() -> None:
    """Every extra that the code names is one of pyproject.toml."""
    named = {
        extra
        for path in SOURCE
        for extra in re.findall(r"install_command\(['\"](\w+)['\"]\)", path.read_text("utf-8"))
    }
    assert {"cpu", "triton", "gguf", "bench"} <= named
    assert named <= set(PYPROJECT["project"]["optional-dependencies"])


def test_our_own_plugins_say_what_they_need() -> None:
    """The group `dba.needs` agrees with the extras that install it."""
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"]
    needs = project["entry-points"]["dba.needs"]
    assert set(needs.values()) == {
        re.split(r"[^\w-]", text)[0] for name in ("cpu", "gguf", "triton") for text in extras[name]
    }
    backends = project["entry-points"]["dba.decode_backends"]
    assert {f"decode_backend.{name}" for name in backends} - set(needs) == {"decode_backend.streaming"}
