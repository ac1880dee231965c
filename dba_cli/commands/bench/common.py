"""What the measurements share: lists of numbers, how a report is shown and saved, progress on stderr."""

from __future__ import annotations

import functools
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from dba_cli.terminal import echo

if TYPE_CHECKING:
    from dba_plugins.bench.report import Report

#: More is a slip of the hand: OpenMP ends the process where it cannot start that many.
MOST_THREADS = 1024

Command = Callable[..., Any]


@attrs.frozen(kw_only=True)
class Output:
    """How the report is to be shown."""

    as_json: bool
    plot: bool
    save: Path | None
    quiet: bool

    def check(self) -> None:
        """Before anything is measured. Raises UsageError."""
        if self.save is not None:
            from dba_plugins.bench.report import check_folder

            check_folder(self.save)

    def progress(self, text: str) -> None:
        """What is being measured now."""
        if not self.quiet:
            echo(f"{text} ...", err=True)


def report_options(command: Command) -> Command:
    """--json, --save, --plot and --quiet, as one argument `output`."""
    return click.option("--plot", is_flag=True, help="Draw NAME.png as well, into --save or here.")(
        _with_output(command)
    )


def table_options(command: Command) -> Command:
    """The same for a measurement that has no picture: without --plot."""
    return _with_output(command)


def _with_output(command: Command) -> Command:
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
    @click.option(
        "--save",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Write NAME.json and NAME.md there, in place of those of an earlier measurement.",
    )
    @click.option("--quiet", is_flag=True, help="No progress on stderr.")
    @functools.wraps(command)
    def wrapped(
        *args: Any, as_json: bool, save: Path | None, quiet: bool, plot: bool = False, **rest: Any
    ) -> Any:
        output = Output(as_json=as_json, plot=plot, save=save, quiet=quiet)
        output.check()
        return command(*args, output=output, **rest)

    return wrapped


def repeats_option(default: int) -> Callable[[Command], Command]:
    """--repeats."""
    return click.option(
        "--repeats",
        type=click.IntRange(min=2),
        default=default,
        show_default=True,
        help="Rounds in which every candidate runs once.",
    )


def numbers(*, least: int) -> Callable[[click.Context, click.Parameter, str | None], tuple[int, ...]]:
    """Whole numbers with commas between them, each at least `least`."""

    def read(_ctx: click.Context, _param: click.Parameter, text: str | None) -> tuple[int, ...]:
        parts = [] if text is None else [part.strip() for part in text.split(",")]
        for part in parts:
            if not part.isdecimal() or int(part) < least:
                raise click.BadParameter(f"{part!r} is no whole number >= {least}; write N or N,N,N.")
        return tuple(dict.fromkeys(map(int, parts)))

    return read


def names(_ctx: click.Context, _param: click.Parameter, text: str | None) -> tuple[str, ...]:
    """Names with commas between them."""
    parts = [] if text is None else [part.strip() for part in text.split(",")]
    if not all(parts):
        raise click.BadParameter(f"{text!r} has an empty name; write cpu or cpu,streaming.")
    return tuple(dict.fromkeys(parts))


def _threads(_ctx: click.Context, _param: click.Parameter, text: str | None) -> tuple[int, ...]:
    """As `numbers`, up to what a system can start."""
    parts = [] if text is None else [part.strip() for part in text.split(",")]
    for part in parts:
        if part in ("all", "auto", "max"):
            raise click.BadParameter(
                f"{part!r} is no number; leave --threads out for as many as torch takes."
            )
        if not part.isdecimal() or not 1 <= int(part) <= MOST_THREADS:
            raise click.BadParameter(
                f"{part!r} is no number of threads; allowed: 1 to {MOST_THREADS}, as in 1 or 1,2. "
                f"This machine has {os.cpu_count()} cores."
            )
    return tuple(dict.fromkeys(map(int, parts)))


threads_option = click.option(
    "--threads",
    callback=_threads,
    metavar="N,...",
    help="CPU threads; several are measured one after the other. Without it: as many as torch takes.",
)


def command_line() -> str:
    """What the user typed, as it can be typed again; where it is saved does not count."""
    words = list(sys.argv[1:])
    kept: list[str] = []
    while words:
        word = words.pop(0)
        if word == "--save":
            words = words[1:]
        elif word not in ("--json", "--quiet", "--plot") and not word.startswith("--save="):
            kept.append(word)
    return shlex.join(["dba", *kept])


def show(report: Report, output: Output, *, draw: Callable[[Path, Report], None] | None = None) -> None:
    """Print the report, and write what was asked for."""
    from dba_cli.rendering import columns, echo_json
    from dba_plugins.bench.machine import machine_line
    from dba_plugins.bench.report import save_report

    written: list[Path] = []
    picture: Path | None = None
    if output.plot and draw is not None:
        picture = (Path() if output.save is None else output.save) / f"{report.name}.png"
        draw(picture, report)
        written.append(picture)
    if output.save is not None:
        written += save_report(report, output.save, picture=picture)
    if output.as_json:
        echo_json(report.to_dict())
    else:
        columns(report.title, report.header(), report.cells())
        for note in report.notes:
            echo(f"- {note}")
        echo(f"- {machine_line(report.machine)}")
    for path in written:
        echo(f"Wrote {path}", err=True)
