"""What a job leaves for its reader, and what it tells while it runs: one `Report` and one `Reporter`.

A report is complete as data. It knows its JSON, its tables as text, its Markdown page and its pictures, and
writes them as files; the command line only shows it. No torch, and matplotlib only where a picture is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import attrs

from dba_core.documents import write_json, write_whole
from dba_core.errors import DBAError, UsageError
from dba_core.markdown import fenced, inline, prose, table

Row = Mapping[str, Any]


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
            lines += [*table(each.header, each.cells), ""]
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
