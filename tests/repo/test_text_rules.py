"""Rules about text: one way out to the terminal, one to rich, and every text file is UTF-8 by name."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from source_tree import PACKAGES, imports, module_name, parse, place, python_files

SOURCE = python_files(*PACKAGES)
#: The module that writes to standard output and standard error, and the one that hands texts to rich.
TERMINAL, RENDERING = "dba_cli.output.terminal", "dba_cli.output.rendering"
_WRITES = re.compile(
    r"print|click\.(s?echo|echo_via_pager|prompt|confirm)|(sys\.)?(__)?std(out|err)(__)?\.(buffer\.)?write(lines)?"
    r"|traceback\.print_\w+|os\.write|pprint(\.pprint)?"
)
#: Calls that open a text unless their mode says otherwise, and where the mode stands.
_OPENERS = {"open": 1, "os.fdopen": 1, "io.open": 1}
_METHODS = {"open": 0, "read_text": None, "write_text": None}
_RUNNERS = re.compile(r"subprocess\.(run|Popen|check_output|check_call|call)")


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def raw_output(tree: ast.AST) -> list[ast.Call]:
    return [node for name, node in calls(tree) if _WRITES.fullmatch(name)]


def raw_rich(tree: ast.AST) -> list[ast.Call]:
    """What makes a console, or a text that no console has looked at."""
    return [
        node
        for name, node in calls(tree)
        if name.rpartition(".")[2] in ("Console", "from_markup", "from_ansi", "TextColumn", "render_markup")
        or name == "Text"
    ]


def locale_text(tree: ast.AST) -> list[ast.Call]:
    """Calls that read or write text in the encoding of the locale."""
    found = []
    for name, node in calls(tree):
        given = {keyword.arg for keyword in node.keywords}
        if "encoding" in given:
            continue
        method = name.rpartition(".")[2]
        if _RUNNERS.fullmatch(name):
            wrong = bool(given & {"text", "universal_newlines"})
        elif name in _OPENERS:
            wrong = not is_binary(node, _OPENERS[name])
        elif method in _METHODS and isinstance(node.func, ast.Attribute) and not name.startswith("os."):
            at = _METHODS[method]
            of_metadata = method == "read_text" and bool(node.args)  # a distribution's file, by name
            wrong = not of_metadata and (at is None or not is_binary(node, at))
        else:
            wrong = False
        if wrong:
            found.append(node)
    return found


def is_binary(node: ast.Call, at: int) -> bool:
    modes = [keyword.value for keyword in node.keywords if keyword.arg == "mode"] + node.args[at : at + 1]
    return any(isinstance(mode, ast.Constant) and "b" in str(mode.value) for mode in modes)


def places(check, *exempt: str) -> list[str]:
    return [
        place(path, node) for path in SOURCE if module_name(path) not in exempt for node in check(parse(path))
    ]


def test_everything_is_said_through_the_terminal_module() -> None:
    assert not places(raw_output, TERMINAL)


def test_rich_gets_its_texts_through_the_rendering_module() -> None:
    assert not places(raw_rich, RENDERING)
    importers = {
        module_name(path)
        for path in SOURCE
        for found in imports(path)
        if found.target.split(".")[0] == "rich" and not found.types_only
    }
    assert importers == {RENDERING, "dba_cli.output.progress"}


def test_every_text_file_has_its_encoding_said() -> None:
    assert not places(locale_text)


@pytest.mark.parametrize(
    ("check", "code", "count"),
    [
        (raw_output, "print(1); click.echo(2); sys.stdout.write('x'); click.style('x')", 3),
        (raw_rich, "Console(); rich.console.Console(); Text('x'); Text.from_markup('x')", 4),
        (locale_text, "open(p); open(p, 'w'); open(p, 'rb'); open(p, encoding='utf-8')", 2),
        (locale_text, "p.open(); p.open('rb+'); p.read_text(); p.write_text(t, encoding='utf-8')", 2),
        (locale_text, "os.open(p, 0); safe_open(p); os.fdopen(h, 'wb'); os.fdopen(h)", 1),
        (locale_text, "subprocess.run(c, text=True); subprocess.run(c); q(text=True)", 1),
    ],
)
def test_the_rules_find_what_they_are_for(check, code: str, count: int) -> None:
    assert len(check(ast.parse(code))) == count


def test_the_rules_look_at_files() -> None:
    assert Path(__file__).parents[2] / "dba_cli" / "output" / "terminal.py" in SOURCE


#: Where the command line is the subject: the room that makes options, the suite that looks at them.
_ABOUT_OPTIONS = ("dba_core.command", "dba_core.testing.command")
#: A text with a whole command line of a program, ours or another, may hold its flags.
_COMMAND_LINE = re.compile(r"\b(dba|hf|pip|torchrun) .*--[a-z]", re.DOTALL)
_FLAG = re.compile(r"(?<![\w-])--[a-z]")


def flags_in_texts(tree: ast.AST) -> list[ast.Constant | ast.JoinedStr]:
    """Texts that name a flag of the command line; docstrings are none of them."""
    docstrings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    inside = {part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    found: list[ast.Constant | ast.JoinedStr] = []
    for node in ast.walk(tree):
        if node in docstrings or node in inside or not isinstance(node, (ast.Constant, ast.JoinedStr)):
            continue
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        text = "".join(
            part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else "?"
            for part in parts
        )
        if _FLAG.search(text) and not _COMMAND_LINE.search(text):
            found.append(node)
    return found


def test_the_core_speaks_python() -> None:
    core = [path for path in python_files("dba_core") if module_name(path) not in _ABOUT_OPTIONS]
    found = [place(path, node) for path in core for node in flags_in_texts(parse(path))]
    assert found == [], "say it in Python, and in dba_cli/failure.py how the command line says it"


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("raise E('leave out --strict')", 1),
        ("raise E(f'{name}: write --{option}, or --plugin {name!r}')", 1),
        ("raise E('leave out ' f'{name} ' '--strict')", 1),
        ("raise E('leave out strict=True -- or not')", 0),
        ("raise E(f'repeat it: dba run --config {file}')", 0),
        ("def f():\n    '''`dba --help` and --plugin'''", 0),
    ],
)
def test_the_check_finds_flags(source: str, wrong: int) -> None:
    assert len(flags_in_texts(ast.parse(source))) == wrong
