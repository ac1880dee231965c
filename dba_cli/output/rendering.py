"""How results look: JSON documents and tables on stdout, bars on stderr.

The one place that touches rich: every text it is given is shown as it is (no markup, no emoji codes), through
`terminal.fit`. rich leaves out colours where stdout is no terminal and where NO_COLOR is set, and draws lines
in ASCII where the stream's encoding is none of Unicode's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, HighlighterType, JustifyMethod, OverflowMethod
from rich.progress import BarColumn, Progress, ProgressColumn, Task
from rich.style import Style
from rich.table import Column, Table
from rich.text import Text

from dba_cli.output import terminal
from dba_core.printable import one_line, unseen

if TYPE_CHECKING:
    from dba_core import report

_PLAIN_WIDTH = 160
#: A table in fewer columns than this is not readable; the terminal breaks its lines then.
_LEAST_WIDTH = 40


class _Console(Console):
    """Every text that rich is given, wherever it stands, becomes what this stream can show."""

    def __init__(self, *, stderr: bool, width: int | None = None) -> None:
        super().__init__(
            file=terminal.guarded(err=stderr), width=width, highlight=False, markup=False, emoji=False
        )
        self._on = terminal.stream(err=stderr)

    def render_str(
        self,
        text: str,
        *,
        style: str | Style = "",
        justify: JustifyMethod | None = None,
        overflow: OverflowMethod | None = None,
        emoji: bool | None = None,
        markup: bool | None = None,
        highlight: bool | None = None,
        highlighter: HighlighterType | None = None,
    ) -> Text:
        return Text(terminal.fit(text, self._on), style=style, justify=justify, overflow=overflow)


class _Words(ProgressColumn):
    """A column of a bar: the format of a task, as a text that is shown as it is."""

    def __init__(self, form: str, on: _Console) -> None:
        self._form = form
        self._on = on
        super().__init__(table_column=Column(no_wrap=True))

    def render(self, task: Task) -> Text:
        return self._on.render_str(one_line(self._form.format(task=task)))


def console(*, stderr: bool = False) -> _Console:
    """A console as wide as the terminal, or wide enough for a file."""
    probe = _Console(stderr=stderr)
    return _Console(
        stderr=stderr, width=max(probe.width, _LEAST_WIDTH) if probe.is_terminal else _PLAIN_WIDTH
    )


def progress(before: str, after: str = "", *, hidden: bool = False) -> Progress:
    """A bar on stderr between two texts about its task; none where no terminal can redraw it."""
    on = console(stderr=True)
    words = [_Words(before, on), BarColumn(), *([_Words(after, on)] if after else [])]
    return Progress(*words, console=on, transient=True, disable=hidden or not can_redraw(on))


def can_redraw(on: Console) -> bool:
    """Whether a line that was written can be written again."""
    return on.is_terminal and not on.is_dumb_terminal


def echo_json(document: Mapping[str, Any] | Sequence[Any]) -> None:
    """Exactly one JSON document on stdout. A number that is not finite becomes null.

    Its texts are exact: what a reader cannot see, or the stream cannot hold, is written as JSON's own escape.
    """
    only_ascii = not terminal.is_unicode(terminal.stream(err=False))
    text = json.dumps(finite(document), indent=2, ensure_ascii=only_ascii, allow_nan=False)
    terminal.echo("\n".join(map(_json_line, text.split("\n"))))


def echo_toml(text: str) -> None:
    """A TOML document on stdout that reads back as it is, whatever the stream's encoding."""
    only_ascii = not terminal.is_unicode(terminal.stream(err=False))
    terminal.echo("\n".join(_toml_line(line, only_ascii) for line in text.split("\n")), nl=False)


def _json_line(line: str) -> str:
    """Outside its texts there is nothing but ASCII that is seen."""
    if line.isprintable():
        return line
    return "".join(json.dumps(letter)[1:-1] if unseen(letter) else letter for letter in line)


def _toml_line(line: str, only_ascii: bool) -> str:
    """The same; TOML writes a character beyond the first 65,536 with eight digits."""
    if line.isprintable() and (line.isascii() or not only_ascii):
        return line
    return "".join(
        (f"\\u{ord(letter):04x}" if ord(letter) < 1 << 16 else f"\\U{ord(letter):08x}")
        if unseen(letter) or (only_ascii and not letter.isascii())
        else letter
        for letter in line
    )


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
    table = _names_and_values(title)
    for name, value in rows:
        table.add_row(one_line(name), one_line(value))
    console().print(table)


def sections(title: str, parts: Iterable[report.Table]) -> None:
    """One table of names and values in titled groups."""
    on, table = console(), _names_and_values(title)
    for part in parts:
        table.add_section()
        table.add_row(on.render_str(one_line(part.title), style="cyan"), "")
        for name, value in part.cells:
            table.add_row(f"  {one_line(name)}", one_line(value))
    on.print(table)


def columns(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table with a header."""
    table = Table(title=one_line(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for name in header:
        table.add_column(one_line(name), overflow="fold")
    for row in rows:
        table.add_row(*map(one_line, row))
    console().print(table)


def _names_and_values(title: str) -> Table:
    table = Table(
        title=one_line(title), title_justify="left", title_style="bold", show_header=False, box=box.SIMPLE
    )
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table
