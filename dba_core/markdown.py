"""Text inside a Markdown report: whatever it holds is read as that text, not as markup, HTML or a new line.

Escapes are those that CommonMark, GitHub and Python-Markdown read alike; `~` has none in the last.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from dba_core.printable import one_line, printable

#: What means something anywhere: a backslash before punctuation or at the end, marks of emphasis, code, links
#: and tables, an underline that does not stand inside a word.
_MARKS = re.compile(r"\\(?=[!-/:-@\[-`{-~]|$)|[`*\[\]|]|(?<![^\W_])_|_(?![^\W_])")
#: What means something at the beginning: a heading, a quotation, a rule, lists.
_OPENING = re.compile(r"^(\s*)([#>]|[+-](?=[\s-]|$))|^(\s*\d+)([.)])(?=\s|$)")
_ENTITY = re.compile(r"&(?=#?\w+;)")


def prose(text: str) -> str:
    """One line that shows the text as it is, in a paragraph, a heading or a list."""
    shown = inline(text)
    opening = _OPENING.match(shown)
    if opening is None:
        return shown
    mark = opening.start(2) if opening[2] else opening.start(4)
    return f"{shown[:mark]}\\{shown[mark:]}"


def inline(text: str) -> str:
    """The same inside of a line, and in a cell of a table."""
    shown = _MARKS.sub(lambda found: f"\\{found.group()}", one_line(text))
    return _ENTITY.sub("&amp;", shown).replace("<", "&lt;").replace("~", "&#126;")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table; every cell is `inline`."""
    lines = [[inline(cell) for cell in row] for row in (header, *rows)]
    lines.insert(1, ["---"] * len(header))
    return ["| " + " | ".join(line) + " |" for line in lines]


def fenced(text: str, language: str) -> list[str]:
    """A block of code whose fence is longer than any run of backticks inside."""
    fence = "```"
    while fence in text:
        fence += "`"
    return [f"{fence}{language}", printable(text, lines=True), fence]
