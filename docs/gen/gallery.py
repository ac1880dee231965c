"""Writes the head of a plugin's page from its source: summary, formula, options, contract, how to choose it.

A page says `<!-- plugin: summarizer mean -->` on a line of its own. The sources are parsed, not imported:
they need torch, and these pages are built without it. A hook of mkdocs.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.exceptions import PluginError

from dba_cli.failure import in_flags
from dba_core.distribution import NAME
from dba_core.kinds import KINDS
from dba_core.registry import Registry

MARKER = re.compile(r"^<!-- plugin: (\w+) ([\w.]+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: object) -> str:
    """mkdocs calls this for every page before it is rendered."""
    return MARKER.sub(lambda match: plugin_page(match[1], match[2]), markdown)


def plugin_page(kind: str, name: str) -> str:
    """What the module says about itself, then a table of the plugin's options."""
    modules = [
        info.module
        for info in Registry().list()
        if (info.kind, info.name, info.distribution) == (kind, name, NAME)
    ]
    if len(modules) != 1:
        raise PluginError(f"the page of {kind} {name}: {NAME} ships {len(modules)} plugins of this name")
    tree = parse(modules[0].partition(":")[0])
    return "\n\n".join(
        [
            f"Module `{modules[0]}`. Choose it with `{in_flags(KINDS[kind].chosen_by(name))}`.",
            as_markdown((ast.get_docstring(tree, clean=False) or "").strip("\n")),
            request_text(tree) if kind == "command" else options_text(tree),
        ]
    )


def parse(module: str) -> ast.Module:
    """The syntax tree of an installed module, which is found but not run."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise PluginError(f"the source of {module} cannot be found")
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


def as_markdown(docstring: str) -> str:
    """A docstring whose indented paragraphs are formulas."""
    paragraphs = docstring.split("\n\n")
    return "\n\n".join(
        f"```text\n{paragraph}\n```" if paragraph.startswith("    ") else paragraph
        for paragraph in paragraphs
    )


def options_text(tree: ast.Module) -> str:
    """The options: class of the module, or imported from the module beside it; else it takes none."""
    name = options_name(tree)
    if name == "NoOptions":
        return "It takes no options."
    found = options_class(tree, name)
    rows = [
        f"| `{field.target.id}` | `{ast.unparse(field.annotation)}` | `{default_of(field)}` |"
        for field in found.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    ]
    table = "\n".join(["| option | type | default |", "| --- | --- | --- |", *rows])
    return f"{table}\n\n{ast.get_docstring(found) or ''}"


def request_text(tree: ast.Module) -> str:
    """The fields of a command's request, which are its options, each with its help."""
    names = [
        word.value.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for word in node.keywords
        if word.arg == "request_class" and isinstance(word.value, ast.Name)
    ]
    if len(names) != 1:
        raise PluginError(f"a command's module has {len(names)} times `request_class=NAME`; one is needed")
    rows = [
        f"| `{field.target.id}` | `{ast.unparse(field.annotation)}` | {help_of(field.value)} |"
        for field in options_class(tree, names[0]).body
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(field.value, ast.Call)
    ]
    return "\n".join(["| field of the request | type | what |", "| --- | --- | --- |", *rows])


def help_of(made: ast.Call) -> str:
    """The `help=` of an option where it is written out; a group of options says none."""
    texts = [word.value for word in made.keywords if word.arg == "help"]
    written = [text.value for text in texts if isinstance(text, ast.Constant)]
    return str(written[0]).replace("|", "\\|") if written else ""


def options_name(tree: ast.Module) -> str:
    """What `options_class = ...` names in the plugin's class."""
    names = [
        statement.value.id
        for statement in ast.walk(tree)
        if isinstance(statement, (ast.Assign, ast.AnnAssign))
        and isinstance(statement.value, ast.Name)
        and any(
            isinstance(target, ast.Name) and target.id == "options_class" for target in targets(statement)
        )
    ]
    if len(names) != 1:
        raise PluginError(f"a plugin module has {len(names)} lines `options_class = NAME`; one is needed")
    return names[0]


def targets(statement: ast.Assign | ast.AnnAssign) -> list[ast.expr]:
    return statement.targets if isinstance(statement, ast.Assign) else [statement.target]


def options_class(tree: ast.Module, name: str) -> ast.ClassDef:
    for part in (tree, *(parse(module) for module in imports_of(tree, name))):
        for statement in part.body:
            if isinstance(statement, ast.ClassDef) and statement.name == name:
                return statement
    raise PluginError(f"the options class {name} cannot be found")


def imports_of(tree: ast.Module, name: str) -> Iterator[str]:
    """The modules that `name` is imported from."""
    for statement in tree.body:
        if isinstance(statement, ast.ImportFrom) and any(alias.name == name for alias in statement.names):
            yield statement.module or ""


def default_of(field: ast.AnnAssign) -> str:
    """`1024` of `block: int = 1024` and of `block: int = attrs.field(default=1024, ...)`."""
    if isinstance(field.value, ast.Call):
        return next(ast.unparse(word.value) for word in field.value.keywords if word.arg == "default")
    return "required" if field.value is None else ast.unparse(field.value)
