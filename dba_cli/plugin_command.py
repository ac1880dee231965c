"""A command from a request: the options are its fields, and what is done with a report is the same everywhere.

`--json`, `--save`, `--plot` and `--quiet` are made here and nowhere else. The CLI's own commands take single
classes of options from here too (`request_options`).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from dba_cli import completing
from dba_core.command import Command, Field, Option, fields_of, make_request
from dba_core.errors import DBAError, PluginError

if TYPE_CHECKING:
    from dba_core.registry import LoadedPlugin
    from dba_core.report import Report

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


@attrs.frozen(kw_only=True)
class Output:
    """How a report is to be shown."""

    as_json: bool
    quiet: bool
    save: Path | None
    plot: bool


def request_options(request_class: type, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
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
    command: Command[Any] = loaded.plugin
    parts = command.name.split(".")

    @request_options(command.request_class, "request")
    def call(request: Any, as_json: bool, quiet: bool, save: Path | None, plot: bool = False) -> None:
        _run(loaded, request, Output(as_json=as_json, quiet=quiet, save=save, plot=plot))

    options = [json_option, save_option, *([plot_option] if command.draws else []), quiet_option]
    for option in reversed(options):
        call = option(call)
    text = inspect.getdoc(command.run) or command.summary
    return click.command(parts[-1], help=text, short_help=command.summary)(call)


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


def _report(loaded: LoadedPlugin, request: Any, reporter: Any) -> Report:
    """What the command returns. Raises PluginError that names it for what no command should raise."""
    from dba_core.registry.contain import Failure, contain
    from dba_core.report import Report

    outcome = contain(lambda: loaded.plugin.run(request, reporter))
    if isinstance(outcome, Report):
        return outcome
    if not isinstance(outcome, Failure):
        raise PluginError(f"{loaded.info.who} returned a {type(outcome).__name__}; allowed: a Report")
    known = isinstance(outcome.error, (DBAError, click.ClickException, click.Abort, OSError))
    if known or loaded.info.is_ours:
        raise outcome.error
    raise CommandFailedError(
        f"{loaded.info.who} failed: {outcome}. Report it to its author."
    ) from outcome.error


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
    if spec.positional:
        return click.argument(
            field.key, type=_type(field), required=field.default is attrs.NOTHING, **_offered(spec)
        )
    names = [field.flag, field.key]
    if field.kind is bool:
        if field.optional or field.default is True:
            names[0] = f"{field.flag}/{field.flag.replace('--', '--no-', 1)}"
        plain = not (field.optional or field.default is True)
        return (
            click.option(
                *names,
                is_flag=True,
                default=field.default,
                show_default=field.default is True,
                help=_help(spec),
            )
            if plain
            else click.option(
                *names, default=field.default, show_default=field.default is True, help=_help(spec)
            )
        )
    how: dict[str, Any] = {"help": _help(spec), "metavar": _unit(field), **_offered(spec)}
    if field.default is attrs.NOTHING:
        how["required"] = True
    elif field.is_list and field.option.repeated:
        how["default"] = field.default
    elif field.is_list:
        how["default"] = ",".join(map(str, field.default)) if field.default else None
    else:
        how["default"] = field.default
    how["show_default"] = how.get("default") not in (None, ())
    if field.is_list and not spec.repeated:
        return click.option(*names, callback=_comma_reader(field), **how)
    return click.option(*names, type=_type(field), multiple=field.is_list, **how)


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
        return tuple(dict.fromkeys(_read_one(field, part) for part in parts))

    return read


def _read_one(field: Field, part: str) -> Any:
    spec = field.option
    if field.kind is str:
        problem = "is an empty name; write one, or several with commas between them" if not part else None
        if problem is None and spec.problem(part) is None:
            return part
        raise click.BadParameter(f"{part!r} {problem}." if problem else f"{spec.problem(part)}")
    kind = "whole number" if field.kind is int else "number"
    try:
        value = field.kind(part)
    except ValueError:
        value = None
    if value is not None and (part.isdecimal() or field.kind is float) and spec.problem(value) is None:
        return value
    bounded = spec.least is not None or spec.most is not None
    out = f", or leave {field.flag} out for {spec.without}" if spec.without else ""
    raise click.BadParameter(
        f"{part!r} is no {kind}{f' that is allowed ({spec.range_text})' if bounded else ''}; write N or N,N,N{out}."
    )
