"""What the measurements share: options of rounds and threads, a report of rows, machine and picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from dba_core.command import option
from dba_core.report import Column, Picture, Report, Table
from dba_plugins.bench.machine import describe_machine

#: More is a slip of the hand: OpenMP ends the process where it cannot start that many.
MOST_THREADS = 1024


def repeats(default: int) -> Any:
    """The option --repeats."""
    return option(default, help="Rounds in which every candidate runs once.", least=2)


def threads() -> Any:
    """The option --threads."""
    return option(
        (),
        help="CPU threads; several are measured one after the other.",
        without="as many as torch takes",
        least=1,
        most=MOST_THREADS,
    )


def measured(
    *,
    name: str,
    title: str,
    command: str,
    columns: tuple[Column, ...],
    rows: Sequence[Mapping[str, Any]],
    notes: tuple[str, ...],
    device: str = "cpu",
    draw: Callable[[Path, Report], None] | None = None,
) -> Report:
    """device: that it ran on. draw: its picture."""
    report = Report(
        name=name,
        title=title,
        command=command,
        tables=(Table(columns=columns, rows=tuple(rows)),),
        figures={"rows": tuple(rows)},
        notes=notes,
        machine=describe_machine(device),
    )
    if draw is None:
        return report
    return attrs.evolve(report, pictures=(Picture(name=name, draw=lambda path: draw(path, report)),))
