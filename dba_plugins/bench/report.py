"""The result of a measurement: rows of plain values, what they were measured on, and how to measure again.

Every command prints it as a table, or as JSON, and saves it as files that can be published as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from dba_core.documents import write_json, write_whole
from dba_core.errors import UsageError
from dba_core.markdown import fenced, inline, prose, table
from dba_core.report import as_plain
from dba_plugins.bench.machine import machine_line

SCHEMA = 1


@attrs.frozen
class Column:
    """A column of the table: the rows' key, its title, and how a value is written (None is empty)."""

    key: str
    title: str
    form: str = "{}"


@attrs.frozen(kw_only=True)
class Report:
    """name: of the measurement and of its files. command: that repeats it. notes: what a reader must know."""

    name: str
    title: str
    command: str
    columns: tuple[Column, ...]
    rows: tuple[Mapping[str, Any], ...]
    machine: dict[str, Any]
    notes: tuple[str, ...] = ()
    schema: int = SCHEMA

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without the columns of the table."""
        plain: dict[str, Any] = as_plain(self)
        del plain["columns"]
        return plain

    def header(self) -> list[str]:
        return [column.title for column in self.columns]

    def cells(self) -> list[list[str]]:
        """The table as text."""
        return [[_cell(row.get(column.key), column.form) for column in self.columns] for row in self.rows]

    def markdown(self, pictures: Sequence[str] = ()) -> str:
        """A page: title, command, pictures, table, notes, machine."""
        title = inline(self.title)
        lines = [f"# {title}", "", *fenced(self.command, "sh"), ""]
        for picture in pictures:
            lines += [f"![{title}]({picture})", ""]
        lines += table(self.header(), self.cells())
        notes = [f"- {prose(note)}" for note in self.notes]
        lines += ["", *notes, "", f"Measured on {inline(machine_line(self.machine))}."]
        return "\n".join(lines) + "\n"


def save_report(report: Report, folder: Path, *, picture: Path | None = None) -> list[Path]:
    """Write NAME.json and NAME.md to `folder`; picture, which is there already, is shown on the page.

    They replace those of an earlier measurement. Raises UsageError for a folder that is a file.
    """
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{report.name}.json", folder / f"{report.name}.md"]
    write_json(files[0], report.to_dict())
    write_whole(files[1], report.markdown([picture.name] if picture is not None else []))
    return files


def check_folder(folder: Path) -> None:
    """Raise UsageError before anything is measured."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; give --save a folder")


def _cell(value: Any, form: str) -> str:
    if value is None:
        return ""
    return form.format(value)
