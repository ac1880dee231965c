"""What a job leaves for its reader, and what it tells while it runs: one `Report` and one `Reporter`.

A report is complete as data. It knows its JSON, its tables as text, its Markdown page and its pictures, and
writes them as files; the command line only shows it. Whatever a text holds is read as that text: in Markdown
not as markup, HTML or a new line (escapes are those that CommonMark, GitHub and Python-Markdown read alike;
`~` has none in the last), in a picture not as a formula. No torch; matplotlib only where a picture is drawn.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from dba_core.documents import write_json, write_whole
from dba_core.errors import DBAError, UsageError
from dba_core.printable import one_line, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
#: Letters of a name and of a whole title in a picture; longer ones leave no room for the picture.
NAME, TITLE = 64, 120
#: What means something anywhere in Markdown: a backslash before punctuation or at the end, marks of emphasis,
#: code, links and tables, an underline that does not stand inside a word.
_MARKS = re.compile(r"\\(?=[!-/:-@\[-`{-~]|$)|[`*\[\]|]|(?<![^\W_])_|_(?![^\W_])")
#: What means something at the beginning of a line: a heading, a quotation, a rule, lists.
_OPENING = re.compile(r"^(\s*)([#>]|[+-](?=[\s-]|$))|^(\s*\d+)([.)])(?=\s|$)")
_ENTITY = re.compile(r"&(?=#?\w+;)")


class GoalError(DBAError):
    """The report is complete, and says that what was asked for does not hold."""


@attrs.frozen
class Column:
    """A column of a table: the rows' key, its title, and how a value is written (None is empty)."""

    key: str
    title: str
    form: str = "{}"


@attrs.frozen(kw_only=True)
class Table:
    """Rows of plain values. One whose columns have no titles is a list of names and values."""

    columns: tuple[Column, ...]
    rows: Sequence[Row]
    title: str = ""

    @classmethod
    def of_texts(cls, header: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> Table:
        """Of cells that are texts already."""
        columns = tuple(Column(str(number), text) for number, text in enumerate(header))
        keyed = [{str(number): cell for number, cell in enumerate(row)} for row in rows]
        return cls(title=title, columns=columns, rows=tuple(keyed))

    @classmethod
    def of_facts(cls, rows: Sequence[tuple[str, str]], *, title: str = "") -> Table:
        """Names and values."""
        return cls.of_texts(("", ""), rows, title=title)

    @property
    def is_facts(self) -> bool:
        return not any(self.header)

    @property
    def header(self) -> list[str]:
        return [column.title for column in self.columns]

    @property
    def cells(self) -> list[list[str]]:
        """The rows as text."""
        return [[_cell(row.get(column.key), column.form) for column in self.columns] for row in self.rows]


@attrs.frozen(kw_only=True)
class Picture:
    """A file NAME.png and what draws it there; `draw` imports matplotlib itself."""

    name: str
    draw: Callable[[Path], None]


@attrs.frozen(kw_only=True)
class Report:
    """name: of the job and of its files. command: that repeats it, "" where none does. figures: everything
    that was found, as plain data under the names that its JSON has. notes: what a reader must know. machine:
    what it was measured on (see `machine_line`), where that matters. next: commands to go on with. failed:
    why what was asked for does not hold, None where it does. folder: where its files belong where nobody says
    otherwise; None where that is the user's choice alone. schema: raised when a figure changes its meaning or
    goes away.
    """

    name: str
    title: str
    command: str = ""
    tables: tuple[Table, ...] = ()
    figures: Mapping[str, Any] = attrs.field(factory=dict)
    notes: tuple[str, ...] = ()
    machine: Mapping[str, Any] | None = None
    pictures: tuple[Picture, ...] = ()
    next: tuple[str, ...] = ()
    failed: str | None = None
    folder: Path | None = None
    schema: int = 1

    @property
    def rows(self) -> Sequence[Row]:
        """Of the first table."""
        return self.tables[0].rows

    def to_dict(self) -> dict[str, Any]:
        """One JSON object; a number that is not finite is None in it."""
        head = {"schema": self.schema, "name": self.name, "title": self.title, "command": self.command}
        machine = {} if self.machine is None else {"machine": self.machine}
        plain: dict[str, Any] = as_plain({**head, "notes": self.notes, **machine, **self.figures})
        return plain

    def markdown(self, pictures: Sequence[str] = ()) -> str:
        """A page: title, command, pictures (paths of files), tables, notes, machine."""
        title = inline(self.title)
        lines = [f"# {title}", ""]
        if self.command:
            lines += [*fenced(self.command, "sh"), ""]
        for picture in pictures:
            lines += [f"![{title}]({picture})", ""]
        for each in self.tables:
            lines += [f"## {inline(each.title)}", ""] if each.title else []
            lines += [*markdown_table(each.header, each.cells), ""]
        lines += [f"- {prose(note)}" for note in self.notes]
        if self.machine is not None:
            lines += ["", f"Measured on {inline(machine_line(self.machine))}."]
        return "\n".join(lines).rstrip("\n") + "\n"

    def save(self, folder: Path, *, plot: bool = False) -> list[Path]:
        """Write NAME.json and NAME.md to `folder`, with `plot` its pictures too; what was written.

        They replace those of an earlier measurement. Raises UsageError for a folder that is a file.
        """
        check_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        drawn = self.draw(folder) if plot else []
        files = [folder / f"{self.name}.json", folder / f"{self.name}.md"]
        write_json(files[0], self.to_dict())
        write_whole(files[1], self.markdown([path.name for path in drawn]))
        return [*drawn, *files]

    def draw(self, folder: Path) -> list[Path]:
        """Draw every picture into `folder`. Raises UsageError where the report has none."""
        if not self.pictures:
            raise UsageError(f"{self.name} has no picture here; it can be saved without one")
        paths = [folder / f"{picture.name}.png" for picture in self.pictures]
        for picture, path in zip(self.pictures, paths, strict=True):
            picture.draw(path)
        return paths

    def require(self) -> Report:
        """This report. Raises GoalError where what was asked for does not hold."""
        if self.failed is not None:
            raise GoalError(self.failed)
        return self


class Reporter(Protocol):
    """The listener of a job. Only the main process of one reports."""

    def phase(self, text: str, steps: int | None = None) -> None:
        """A phase begins, of so many steps where that is known."""

    def step(self, done: int | None = None, steps: int | None = None) -> None:
        """One more step of the phase is done, or so many of so many."""

    def note(self, text: str) -> None:
        """Something the user wants to know."""

    def warning(self, text: str) -> None:
        """Something that is not as asked for, yet goes on."""

    def event(self, event: object) -> None:
        """A record of what happened, for listeners that know its class: those of training, say."""


class SilentReporter:
    """Says nothing."""

    def phase(self, text: str, steps: int | None = None) -> None: ...

    def step(self, done: int | None = None, steps: int | None = None) -> None: ...

    def note(self, text: str) -> None: ...

    def warning(self, text: str) -> None: ...

    def event(self, event: object) -> None: ...


def check_folder(folder: Path) -> None:
    """Raise UsageError for one that is a file."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; reports are saved in a folder, give one")


def machine_line(machine: Mapping[str, Any]) -> str:
    """The facts of a machine in one line, for a table's foot."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    features = ", ".join(machine["cpu_features"]) or "no vector features known"
    processor = f"{machine['device_name']} ({features}), {machine['cores']} cores"
    return f"{processor}, Python {machine['python']}, {versions}, {machine['date']}"


def as_plain(value: Any) -> Any:
    """attrs objects, tables and sequences -> what JSON can hold; a number that is not finite -> None."""
    if attrs.has(type(value)):
        return as_plain(attrs.asdict(value, recurse=False))
    if isinstance(value, Mapping):
        return {str(key): as_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _cell(value: Any, form: str) -> str:
    return "" if value is None else form.format(value)


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


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
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


def drawn(text: str, *, longest: int = NAME) -> str:
    """A text in a title, a label or a legend: one line, shown as it is, its middle left out if it is long.

    matplotlib reads `$...$` as a formula unless each dollar has a backslash, which it takes off again.
    """
    shown = one_line(text)
    if len(shown) > longest:
        shown = f"{shown[: longest // 2 - 2]} ... {shown[3 - longest // 2 :]}"
    return shown.replace("$", r"\$")


def save_png(figure: Figure, path: Path) -> None:
    """Write the picture, and the folder that it is for. The fonts at hand may lack a letter of a name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+|Matplotlib currently does not support", UserWarning)
        figure.savefig(path, format="png")
