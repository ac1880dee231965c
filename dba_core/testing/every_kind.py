"""Checks that all kinds share: form, options, metadata, and capability statements in both directions."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import attrs

from dba_core.contracts import Reason
from dba_core.kinds import KINDS
from dba_core.registry.contain import Failure, contain
from dba_core.registry.discovery import name_problem
from dba_core.registry.plugin_loading import options_to_dict, structure_options
from dba_core.testing.subject import Subject, Violation, describe, told

_FIND = """
from dba_core.registry import Registry
registry = Registry()
registry.list()
registry.find({kind!r}, {name!r})
registry.auto_order({kind!r}, device={device!r})
"""


def well_formed(subject: Subject) -> Iterator[Violation]:
    """What loading does not ask of a plugin, and a user meets."""
    plugin, contract = subject.loaded.plugin, KINDS[subject.kind].contract
    wrong_name = name_problem(plugin.name)
    if wrong_name is not None:
        yield Violation("name", "a name that can be chosen", wrong_name)
    if plugin.contract != contract:
        yield Violation("contract", f"contract {contract}", str(plugin.contract))
    if not plugin.summary.strip() or "\n" in plugin.summary or len(plugin.summary) > 120:
        yield Violation("summary", "one line of 1 to 120 characters", repr(plugin.summary))


def options_round_trip(subject: Subject) -> Iterator[Violation]:
    """options -> plain data -> JSON -> options, for the defaults and for the given ones."""
    defaults = structure_options(subject.loaded, {})
    for case, options in (("defaults", defaults), ("the given options", subject.options)):
        back = contain(lambda each=options: _there_and_back(subject, each))  # type: ignore[misc]
        if isinstance(back, Failure) or back != options:
            hint = "Use fields of plain types (int, float, str, bool, tuple) and store them as given."
            yield Violation(case, repr(options), told(back), hint)
    if isinstance(contain(lambda: hash(defaults)), Failure):
        expected, got = (
            "options that cannot change: attrs.frozen",
            f"{type(defaults).__name__}, which has no hash",
        )
        yield Violation("defaults", expected, got, "Decorate the class with @attrs.frozen(kw_only=True).")


def _there_and_back(subject: Subject, options: Any) -> Any:
    text = json.dumps(options_to_dict(options), allow_nan=False)
    return structure_options(subject.loaded, json.loads(text))


def metadata_without_torch(subject: Subject) -> Iterator[Violation]:
    """In a fresh interpreter. A plugin that was given as an object has no metadata."""
    info = subject.loaded.info
    code = _FIND.format(kind=info.kind, name=info.qualified, device=subject.device)
    yield from imports_none(
        subject,
        code,
        ("torch", "triton", subject.module),
        case=f"entry point {info.name} = {info.module}",
        expected="metadata that can be read without importing anything",
    )


def imports_none(
    subject: Subject, code: str, modules: tuple[str, ...], *, case: str, expected: str
) -> Iterator[Violation]:
    """A violation where a fresh interpreter has imported one of `modules` after `code`, or fails. Nothing of
    a plugin that was given as an object.
    """
    if not subject.installed:
        return
    path = [entry for entry in sys.path if entry]
    script = (
        f"import sys\nsys.path[:] = {path!r}\n{code}\nprint(*(m for m in {modules!r} if m in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    if done.returncode:
        yield Violation(case, expected, done.stderr.strip()[-300:])
    elif loaded := done.stdout.split():
        yield Violation(case, expected, f"imported: {', '.join(loaded)}")


def capabilities(subject: Subject, request: Any) -> Iterator[Violation]:
    """What `supports()` accepts is built, and what it declines has complete reasons."""
    answer, case = subject.answer(request), describe(request)
    yield from incomplete_reasons(answer.reasons, case=case)
    if subject.answer(request) != answer:
        hint = "supports() may depend on request, options and what is installed, not on calls."
        yield Violation(case, "one answer to one request", "another answer the second time", hint)
    if answer.ok and request.device == subject.device:
        for _ in subject.built(request):
            pass


def incomplete_reasons(reasons: tuple[Reason, ...], *, case: str) -> Iterator[Violation]:
    for reason in reasons:
        empty = [name for name, value in attrs.asdict(reason).items() if not str(value).strip()]
        if empty:
            yield Violation(
                case,
                "a reason with subject, got, supported and action",
                f"{reason!r}, where {' and '.join(empty)} is empty",
                "Say what was got, what is supported, and what the user can do.",
            )
