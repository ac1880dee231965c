"""Rules of style that no linter holds: sizes, forbidden habits, leftovers, marks on tests."""

from __future__ import annotations

import ast
import re
from collections import Counter

from source_tree import PACKAGES, ROOT, imports, module_name, parse, place, python_files

SOURCE = python_files(*PACKAGES)
TESTS = python_files("tests")
# What foreign code raises (a plugin, a Rust extension, a chat template) is contained here, and nowhere else.
CONTAINS_FOREIGN_ERRORS = "dba_core/registry/contain.py"
# Plugins and distributions are objects of others: what they lack is found out here.
LOOKS_AT_FOREIGN_OBJECTS = "dba_core/registry/"
TEXT_SUFFIXES = {".py", ".md", ".toml", ".ini", ".yml", ".txt", ".css"}
TEXTS = [
    path
    for folder in (*PACKAGES, "tests", "docs", ".ci", ".")
    for path in ((ROOT / folder).rglob("*") if folder != "." else ROOT.glob("*"))
    if path.is_file() and (path.suffix in TEXT_SUFFIXES or path.name == "run")
]


def functions(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_there_is_source_to_check() -> None:
    assert len(SOURCE) > 30
    assert len(TESTS) > 5


def test_files_and_functions_are_short() -> None:
    long_files = [
        f"{path.relative_to(ROOT)}: {count} lines"
        for path in SOURCE + TESTS
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > 400
    ]
    long_functions = [
        f"{place(path, node)} {node.name}: {node.end_lineno - node.lineno + 1} lines"
        for path in SOURCE
        for node in functions(parse(path))
        if node.end_lineno and node.end_lineno - node.lineno >= 70
    ]
    assert not long_files + long_functions


def test_every_module_says_what_it_is() -> None:
    silent = [module_name(path) for path in SOURCE if parse(path).body and not ast.get_docstring(parse(path))]
    assert not silent


def test_exceptions_are_named_and_not_swallowed() -> None:
    broad, swallowed = [], []
    for path in SOURCE:
        for node in ast.walk(parse(path)):
            if not isinstance(node, ast.ExceptHandler):
                continue
            caught = ast.unparse(node.type) if node.type else "everything"
            if re.search(r"\b(everything|Exception|BaseException)\b", caught):
                broad.append(place(path, node))
            if len(node.body) == 1 and isinstance(node.body[0], ast.Pass):
                swallowed.append(place(path, node))
    assert not swallowed
    assert [where.partition(":")[0] for where in broad] == [CONTAINS_FOREIGN_ERRORS]


def test_no_attribute_is_read_with_a_default() -> None:
    found = [
        place(path, node)
        for path in SOURCE
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and (node.func.id == "hasattr" or (node.func.id == "getattr" and len(node.args) == 3))
    ]
    assert not [where for where in found if not where.startswith(LOOKS_AT_FOREIGN_OBJECTS)]


def test_nothing_reads_the_environment_or_a_device_at_import() -> None:
    found = []
    for path in SOURCE:
        for statement in parse(path).body:
            if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            text = ast.unparse(statement)
            if re.search(r"\b(environ|getenv|cuda\.is_available|get_default_dtype)\b", text):
                found.append(place(path, statement))
    assert not found


def test_no_file_holds_a_leftover_or_a_path_of_one_machine() -> None:
    marks = "|".join(("TO" + "DO", "FIX" + "ME", "X" + "XX"))
    roots = "|".join(f"/{name}/" for name in ("root", "work", "home", "Users"))
    pattern = re.compile(rf"\b({marks})\b|(?<![\w.~>)}}*-])({roots})")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match.group()}"
        for path in TEXTS
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if (match := pattern.search(line))
    ]
    assert not found


def test_changelog_has_an_unreleased_section_with_entries() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    section = text.partition("## [Unreleased]")[2].partition("\n## ")[0]
    assert section.count("\n- ") > 0


def test_test_modules_have_names_of_their_own() -> None:
    counts = Counter(path.name for path in TESTS if path.name != "conftest.py")
    assert [name for name, count in counts.items() if count > 1] == []


def test_test_modules_that_import_torch_are_marked() -> None:
    """The mark keeps a module from being imported where torch is not installed (see `conftest.py`)."""
    wrong = []
    for path in TESTS:
        imports_torch = any(
            found.target.split(".")[0] == "torch" and not found.types_only for found in imports(path)
        )
        marked = re.search(
            r"^pytestmark = (\[\s*)?pytest\.mark\.torch\b", path.read_text(encoding="utf-8"), re.MULTILINE
        )
        if path.name.startswith("test_") and imports_torch and not marked:
            wrong.append(str(path.relative_to(ROOT)))
    assert not wrong


def test_no_test_imports_after_code() -> None:
    assert [path.name for path in TESTS if "noqa: " + "E402" in path.read_text(encoding="utf-8")] == []


def test_no_module_says_who_calls_it() -> None:
    """That goes stale; the architecture page shows the ways."""
    files = python_files(*PACKAGES)
    said = [
        str(path.relative_to(ROOT)) for path in files if "Called by" in (ast.get_docstring(parse(path)) or "")
    ]
    assert said == []


def test_functions_outside_kernels_take_at_most_fifteen_arguments() -> None:
    many = []
    for path in python_files(*PACKAGES):
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.FunctionDef):
                names = [
                    each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
                ]
                jitted = any("jit" in ast.unparse(mark) for mark in node.decorator_list)
                if len([name for name in names if name not in ("self", "cls")]) > 15 and not jitted:
                    many.append(place(path, node))
    assert many == []
