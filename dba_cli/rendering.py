"""How results look: JSON documents and rich tables on stdout, notes on stderr. Called by the commands.

rich leaves out colours where stdout is no terminal and where NO_COLOR is set.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from dba_core.runs.summary_text import Section

_PLAIN_WIDTH = 160


def console(*, stderr: bool = False) -> Console:
    """A console as wide as the terminal, or wide enough for a file."""
    probe = Console(stderr=stderr, highlight=False)
    return probe if probe.is_terminal else Console(stderr=stderr, highlight=False, width=_PLAIN_WIDTH)


def echo_json(document: Mapping[str, Any] | Sequence[Any]) -> None:
    """Exactly one JSON document on stdout. A number that is not finite becomes null."""
    click.echo(json.dumps(finite(document), indent=2, ensure_ascii=False, allow_nan=False))


def finite(value: Any) -> Any:
    """The same with every NaN and infinity replaced by None, which JSON can hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


def two_columns(title: str, rows: Iterable[tuple[str, str]]) -> None:
    """A table of names and values."""
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=box.SIMPLE)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(name), Text(value))
    console().print(table)


def sections(title: str, parts: Iterable[Section]) -> None:
    """One table of names and values in titled groups."""
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=box.SIMPLE)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for part in parts:
        table.add_section()
        table.add_row(Text(part.title, style="cyan"), "")
        for name, value in part.rows:
            table.add_row(Text(f"  {name}"), Text(value))
    console().print(table)


def columns(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table with a header."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console().print(table)
