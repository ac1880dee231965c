"""The contract of commands: known by a line without being imported, options plain, report complete."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import attrs

from dba_core.command import Command, command_line, fields_of, given_flags, summary_of
from dba_core.registry.contain import Failure
from dba_core.registry.discovery import docstring_of
from dba_core.report import Report, SilentReporter
from dba_core.testing.check import Suite
from dba_core.testing.every_kind import imports_none
from dba_core.testing.subject import Subject, Violation

COMMAND = Suite("command")
#: What the command line makes for every command.
EVERYWHERE = ("--json", "--save", "--plot", "--quiet", "--help")
_HEAVY = ("torch", "matplotlib", "numpy")


def _command(subject: Subject) -> Iterator[Command[Any]]:
    subject.tally.cases += 1
    yield cast("Command[Any]", subject.loaded.plugin)


@COMMAND.check(
    "its line of help begins its module's docstring, so that `dba --help` imports nothing",
    hint="Write summary=summary_of(__doc__).",
    over=_command,
)
def listed_without_import(subject: Subject, command: Command[Any]) -> Iterator[Violation]:
    if not subject.installed:
        return
    text = docstring_of(subject.module)
    listed = str(text) if isinstance(text, Failure) else summary_of(text)
    if listed != command.summary:
        yield Violation(subject.module, f"the docstring begins with {command.summary!r}", repr(listed))


@COMMAND.check(
    "its module and its request import nothing heavy, so that help and completion are quick",
    hint="Import it inside the functions that compute.",
    over=_command,
)
def light_module(subject: Subject, command: Command[Any]) -> Iterator[Violation]:
    module, expected = subject.module, f"none of {', '.join(_HEAVY)} is imported with it"
    yield from imports_none(subject, f"import {module}", _HEAVY, case=module, expected=expected)


@COMMAND.check("every field of its request is an option with a help and a name of its own", over=_command)
def plain_options(subject: Subject, command: Command[Any]) -> Iterator[Violation]:
    request_class = command.request_class
    if not (isinstance(request_class, type) and attrs.has(request_class)):
        expected = "an attrs class whose fields are made by dba_core.command.option"
        hint = "Decorate it with attrs.frozen(kw_only=True)."
        yield Violation("request_class", expected, repr(request_class), hint)
        return
    fields = list(fields_of(request_class))
    for names, taken in (
        ([field.flag for field in fields], EVERYWHERE),
        ([field.key for field in fields], ("as_json", "save", "plot", "quiet")),
    ):
        for name in sorted({name for name in names if names.count(name) > 1 or name in taken}):
            got = "two of that name, or one that every command has"
            yield Violation(name, "a name that nothing else has", got, "Give option(name=...) another one.")
    for field in fields:
        if not field.option.help and not field.option.positional:
            yield Violation(field.flag, "a help", "none", "Write option(help=...).")


@COMMAND.check(
    "a quick request gives a whole report: JSON, table, page and files, and the line that repeats it",
    over=_command,
)
def whole_report(subject: Subject, command: Command[Any]) -> Iterator[Violation]:
    request = command.quick
    if request is None:
        return
    report: object = command.run(request, SilentReporter())
    if not isinstance(report, Report):
        yield Violation("run(quick)", "a dba_core.report.Report", repr(report), "Return one.")
        return
    document = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    with tempfile.TemporaryDirectory() as folder:
        files = report.save(Path(folder) / "saved", plot=bool(report.pictures))
        empty = [path.name for path in files if not path.exists() or not path.stat().st_size]
        saved = json.loads((Path(folder) / "saved" / f"{report.name}.json").read_text(encoding="utf-8"))
    if empty or saved != document:
        expected = "every file written, its JSON that of to_dict()"
        got = f"empty: {', '.join(empty)}" if empty else "another document"
        yield Violation("run(quick).save", expected, got, "Let to_dict() give the same each time.")
    if report.pictures and not command.draws:
        expected = "a command whose reports have pictures says so"
        hint = "Write Command(draws=True), which gives it --plot."
        yield Violation("run(quick).pictures", expected, "draws=False", hint)
    flags = [flag for flag in given_flags(request) if flag.startswith("--")]
    line = command_line(command.name, request)
    if not all(flag in line for flag in flags):
        yield Violation(line, ", ".join(flags), line, "Use plain defaults.")
