"""The contract of commands: known by a line without being imported, options plain, report complete."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import attrs

from dba_core.command import Command, command_line, fields_of, given_flags, summary_of
from dba_core.registry.contain import Failure
from dba_core.registry.docstring import docstring_of
from dba_core.report import Report, SilentReporter
from dba_core.testing.check import Suite
from dba_core.testing.report import Violation
from dba_core.testing.subject import Subject

COMMAND = Suite("command")
#: What the command line makes for every command.
EVERYWHERE = ("--json", "--save", "--plot", "--quiet", "--help")
_HEAVY = ("torch", "matplotlib", "numpy")


def _command(subject: Subject) -> Command[Any]:
    subject.tally.cases += 1
    return cast("Command[Any]", subject.loaded.plugin)


@COMMAND.check("its line of help begins its module's docstring, so that `dba --help` imports nothing")
def listed_without_import(subject: Subject) -> Iterator[Violation]:
    command = _command(subject)
    if not subject.installed:
        return
    module = subject.loaded.info.module.partition(":")[0]
    text = docstring_of(module)
    listed = str(text) if isinstance(text, Failure) else summary_of(text)
    if listed != command.summary:
        yield Violation(
            case=module,
            expected=f"the docstring begins with {command.summary!r}",
            got=repr(listed),
            hint="Write summary=summary_of(__doc__).",
        )


@COMMAND.check("its module and its request import nothing heavy, so that help and completion are quick")
def light_module(subject: Subject) -> Iterator[Violation]:
    _command(subject)
    if not subject.installed:
        return
    module = subject.loaded.info.module.partition(":")[0]
    code = f"import sys, {module}; print(*[each for each in {_HEAVY!r} if each in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=False)
    loaded = done.stdout.split()
    if loaded or done.returncode:
        yield Violation(
            case=module,
            expected=f"none of {', '.join(_HEAVY)} is imported with it",
            got=", ".join(loaded) or done.stderr.strip()[-200:],
            hint="Import it inside the functions that compute.",
        )


@COMMAND.check("every field of its request is an option with a help and a name of its own")
def plain_options(subject: Subject) -> Iterator[Violation]:
    command = _command(subject)
    request_class = command.request_class
    if not (isinstance(request_class, type) and attrs.has(request_class)):
        yield Violation(
            case="request_class",
            expected="an attrs class whose fields are made by dba_core.command.option",
            got=repr(request_class),
            hint="Decorate it with attrs.frozen(kw_only=True).",
        )
        return
    fields = list(fields_of(request_class))
    for name in ("flag", "key"):
        names = [getattr(field, name) for field in fields]
        taken = EVERYWHERE if name == "flag" else ("as_json", "save", "plot", "quiet")
        for each in sorted({each for each in names if names.count(each) > 1 or each in taken}):
            yield Violation(
                case=each,
                expected="a name that nothing else has",
                got="two of that name, or one that every command has",
                hint="Give option(name=...) another one.",
            )
    for field in fields:
        if not field.option.help and not field.option.positional:
            yield Violation(case=field.flag, expected="a help", got="none", hint="Write option(help=...).")


@COMMAND.check(
    "a quick request gives a whole report: JSON, table, page and files, and the line that repeats it"
)
def whole_report(subject: Subject) -> Iterator[Violation]:
    command = _command(subject)
    request = command.quick
    if request is None:
        return
    report: object = command.run(request, SilentReporter())
    if not isinstance(report, Report):
        yield Violation(
            case="run(quick)", expected="a dba_core.report.Report", got=repr(report), hint="Return one."
        )
        return
    document = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    with tempfile.TemporaryDirectory() as folder:
        files = report.save(Path(folder) / "saved", plot=bool(report.pictures))
        empty = [path.name for path in files if not path.exists() or not path.stat().st_size]
        saved = json.loads((Path(folder) / "saved" / f"{report.name}.json").read_text(encoding="utf-8"))
    if empty or saved != document:
        yield Violation(
            case="run(quick).save",
            expected="every file written, its JSON that of to_dict()",
            got=f"empty: {', '.join(empty)}" if empty else "another document",
            hint="Let to_dict() give the same each time.",
        )
    if bool(report.pictures) and not command.draws:
        yield Violation(
            case="run(quick).pictures",
            expected="a command whose reports have pictures says so",
            got="draws=False",
            hint="Write Command(draws=True), which gives it --plot.",
        )
    flags = [flag for flag in given_flags(request) if flag.startswith("--")]
    line = command_line(command.name, request)
    if not all(flag in line for flag in flags):
        yield Violation(case=line, expected=", ".join(flags), got=line, hint="Use plain defaults.")
