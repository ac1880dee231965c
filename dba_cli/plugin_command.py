"""A command from a request: its options are the fields; what is done with a report is the same everywhere.

`--json`, `--save`, `--plot` and `--quiet` are made here and nowhere else. The CLI's own commands take single
classes of options from here too (`request_options`).
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import attrs
import click

from dba_cli import completing
from dba_core.command import Command, Field, Option, fields_of, make_request
from dba_core.distribution import is_ours
from dba_core.errors import DBAError

if TYPE_CHECKING:
    from dba_core.registry import LoadedPlugin
    from dba_core.report import Report, Reporter

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
quiet_option = click.option("--quiet", is_flag=True, help="No progress on stderr; warnings and errors stay.")
save_option = click.option(
    "--save",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write NAME.json and NAME.md there, in place of those of an earlier measurement.",
)
plot_option = click.option(
    "--plot", is_flag=True, help="Draw its pictures as well, into --save or where they belong."
)


_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@attrs.frozen(kw_only=True)
class Output:
    """How a report is to be shown."""

    as_json: bool
    quiet: bool
    save: Path | None
    plot: bool


def request_options(
    request_class: type[Any], name: str
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options of a request as a decorator; the command gets them as one argument `name`."""
    keys = [field.key for field in fields_of(request_class)]

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_request(*args: Any, **kwargs: Any) -> Any:
            request = make_request(request_class, {key: kwargs.pop(key) for key in keys})
            return command(*args, **{name: request}, **kwargs)

        decorated: Callable[..., Any] = with_request
        for field in reversed(list(fields_of(request_class))):
            decorated = _decorator(field)(decorated)
        return decorated

    return add


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
    from dba_cli.progress import TerminalReporter
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
    from dba_cli.rendering import columns, echo_json, two_columns
    from dba_cli.terminal import echo
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
        from dba_cli.terminal import warn

        warn(f"there is no picture of {report.title}")
    plot = output.plot and bool(report.pictures)
    folder = output.save or (report.folder if plot else None)
    if folder is not None:
        return report.save(folder, plot=plot)
    return report.draw(Path()) if plot else []


def _decorator(field: Field) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """One option or argument for click."""
    spec = field.option
    required = field.default is attrs.NOTHING
    if spec.positional:
        return click.argument(field.key, type=_type(field), required=required, **_offered(spec))
    how: dict[str, Any] = {"help": _help(spec), **_offered(spec)}
    if field.kind is bool:
        both = field.optional or field.default is True
        name = f"{field.flag}/{field.flag.replace('--', '--no-', 1)}" if both else field.flag
        return click.option(
            name, field.key, is_flag=True, default=field.default, show_default=field.default is True, **how
        )
    how["metavar"] = _unit(field)
    if required:
        how["required"] = True
    elif field.is_list and not spec.repeated:
        how["default"] = ",".join(map(str, field.default)) or None
    else:
        how["default"] = field.default
    how["show_default"] = how.get("default") not in (None, ())
    if field.is_list and not spec.repeated:
        return click.option(field.flag, field.key, callback=_comma_reader(field), **how)
    return click.option(field.flag, field.key, type=_type(field), multiple=field.is_list, **how)


def _help(spec: Option) -> str:
    return f"{spec.help} Without it: {spec.without}." if spec.without else spec.help


def _unit(field: Field) -> str | None:
    """What the help shows for a value; of a list with commas: N,..."""
    unit = field.option.unit
    if field.is_list and not field.option.repeated:
        return f"{unit or ('N' if field.kind in (int, float) else 'NAME')},..."
    return unit or None


def _offered(spec: Option) -> dict[str, Any]:
    """What a shell offers; a path where the word is none of ours."""
    return {"shell_complete": completing.BY_NAME[spec.offers]} if spec.offers in completing.BY_NAME else {}


def _type(field: Field) -> Any:
    spec = field.option
    if spec.allowed:
        return click.Choice(spec.allowed)
    if field.kind is Path:
        return click.Path(path_type=Path)
    if field.kind is int:
        return (
            int
            if spec.least is None and spec.most is None
            else click.IntRange(_whole(spec.least), _whole(spec.most))
        )
    if field.kind is float:
        return float if spec.least is None and spec.most is None else click.FloatRange(spec.least, spec.most)
    return str


def _whole(bound: float | None) -> int | None:
    return None if bound is None else int(bound)


def _comma_reader(field: Field) -> Callable[[click.Context, click.Parameter, str | None], tuple[Any, ...]]:
    """Values with commas between them; one that comes twice counts once."""

    def read(_ctx: click.Context, _param: click.Parameter, text: str | None) -> tuple[Any, ...]:
        parts = [] if text is None else [part.strip() for part in text.split(",")]
        if field.kind is str and not all(parts):
            raise click.BadParameter(f"{text!r} has an empty name; write NAME or NAME,NAME.")
        return tuple(dict.fromkeys(_read_one(field, part) for part in parts))

    return read


def _read_one(field: Field, part: str) -> Any:
    """One value of a list. Raises BadParameter."""
    spec = field.option
    if field.kind is str:
        problem = spec.problem(part)
        if problem is not None:
            raise click.BadParameter(problem)
        return part
    is_number = part.isdecimal() if field.kind is int else _NUMBER.fullmatch(part) is not None
    if is_number and spec.problem(field.kind(part)) is None:
        return field.kind(part)
    bounded = spec.least is not None or spec.most is not None
    wanted = f"{'whole ' if field.kind is int else ''}number{f' {spec.range_text}' if bounded else ''}"
    leave = f", or leave {field.flag} out: {spec.without}" if spec.without else ""
    raise click.BadParameter(f"{part!r} is no {wanted}; write N or N,N,N{leave}.")
