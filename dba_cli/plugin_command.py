"""A command that is a plugin: asked, run, shown. What is done with a report is the same everywhere: `--json`,
`--save`, `--plot`, `--quiet`.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import attrs
import click

from dba_cli.options import json_option, plot_option, quiet_option, request_options, save_option
from dba_core.command import Command
from dba_core.distribution import is_ours
from dba_core.errors import DBAError

if TYPE_CHECKING:
    from dba_core.registry import LoadedPlugin
    from dba_core.report import Report, Reporter


@attrs.frozen(kw_only=True)
class Output:
    """How a report is to be shown."""

    as_json: bool
    quiet: bool
    save: Path | None
    plot: bool


def plugin_command(loaded: LoadedPlugin) -> click.Command:
    """The command of a plugin. Raises PluginError where its request is none."""
    command = cast("Command[Any]", loaded.plugin)
    request_class: type[Any] = command.request_class

    def call(request: Any, as_json: bool, quiet: bool, save: Path | None, plot: bool = False) -> None:
        _run(loaded, request, Output(as_json=as_json, quiet=quiet, save=save, plot=plot))

    options = [json_option, save_option, *([plot_option] if command.draws else []), quiet_option]
    for option in reversed(options):
        call = option(call)
    text = inspect.getdoc(command.run) or command.summary
    made = click.command(command.name.split(".")[-1], help=text, short_help=command.summary)
    return made(request_options(request_class, "request")(call))


def _run(loaded: LoadedPlugin, request: Any, output: Output) -> None:
    """Measure, show, write; the exit code is 1 where the report says that a goal is missed."""
    from dba_cli.output.progress import TerminalReporter
    from dba_core.report import check_folder

    if output.save is not None:
        check_folder(output.save)
    with TerminalReporter(quiet=output.quiet) as reporter:
        report = _report(loaded, request, reporter)
    show_report(report, output)
    report.require()


def _report(loaded: LoadedPlugin, request: Any, reporter: Reporter) -> Report:
    """What the command returns. Raises CommandFailedError that names it for what no command should raise."""
    from dba_core.registry.contain import Failure, contain, shown
    from dba_core.report import Report

    command = cast("Command[Any]", loaded.plugin)
    if is_ours(loaded.info.distribution):
        return command.run(request, reporter)
    outcome: object = contain(lambda: command.run(request, reporter))
    if isinstance(outcome, Report):
        return outcome
    if not isinstance(outcome, Failure):
        text = f"{loaded.info.who} returned {shown(outcome)}; allowed: a dba_core.report.Report"
        raise CommandFailedError(f"{text}. Report it to its author")
    if isinstance(outcome.error, (DBAError, OSError)):
        raise outcome.error
    text = f"{loaded.info.who} failed ({outcome}); report it to its author"
    raise CommandFailedError(text) from outcome.error


class CommandFailedError(DBAError):
    """A command of another distribution raised what nobody expected."""


def show_report(report: Report, output: Output) -> None:
    """Print the report, and write what was asked for."""
    from dba_cli.output.rendering import columns, echo_json, two_columns
    from dba_cli.output.terminal import echo
    from dba_core.report import machine_line

    written = _written(report, output)
    if output.as_json:
        echo_json(report.to_dict())
    else:
        for number, table in enumerate(report.tables):
            title = table.title or (report.title if number == 0 else "")
            if table.is_facts:
                two_columns(title, [(row[0], row[1]) for row in table.cells])
            else:
                columns(title, table.header, table.cells)
        for note in report.notes:
            echo(f"- {note}")
        if report.machine is not None:
            echo(f"- {machine_line(report.machine)}")
        if report.next and report.failed is None:
            echo("\n".join(["", "Next:", *(f"  {command}" for command in report.next)]))
    for path in written:
        echo(f"Wrote {path}", err=True)


def _written(report: Report, output: Output) -> list[Path]:
    """All of it into --save; with --plot alone into the folder that it belongs to, else its pictures here."""
    if output.plot and not report.pictures:
        from dba_cli.output.terminal import warn

        warn(f"there is no picture of {report.title}")
    plot = output.plot and bool(report.pictures)
    folder = output.save or (report.folder if plot else None)
    if folder is not None:
        return report.save(folder, plot=plot)
    return report.draw(Path()) if plot else []
