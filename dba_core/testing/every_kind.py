"""Checks that all kinds share: form, options, metadata, and capability statements in both directions.

`common_checks(SUITE)` and `capability_checks(SUITE, requests)` add them to a suite.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import attrs

from dba_core.contracts import Reason
from dba_core.kinds import KINDS
from dba_core.registry.contain import Failure, contain
from dba_core.registry.discovery import name_problem
from dba_core.registry.plugin_loading import options_to_dict, structure_options
from dba_core.testing.check import Suite
from dba_core.testing.subject import Subject, Violation, describe

_METADATA_SCRIPT = """
import sys
sys.path[:] = {path!r}
from dba_core.registry import Registry
registry = Registry()
registry.list()
registry.find({kind!r}, {name!r})
registry.auto_order({kind!r}, device={device!r})
print(*(name for name in ("torch", "triton", {module!r}) if name in sys.modules))
"""


def common_checks(suite: Suite) -> None:
    """Form, options and metadata."""
    suite.check("name, contract number and one-line summary are those of a plugin")(well_formed)
    suite.check("options survive the way to plain data, JSON and back")(options_round_trip)
    suite.check("finding the plugin, and the order of auto, import neither torch nor the plugin")(
        metadata_without_torch
    )


def capability_checks(suite: Suite, requests: Callable[[Subject], Iterator[Any]]) -> None:
    """What `supports()` accepts is built, and what it declines has complete reasons."""

    def capabilities(subject: Subject) -> Iterator[Violation]:
        for request in requests(subject):
            answer = subject.answer(request)
            yield from incomplete_reasons(answer.reasons, case=describe(request))
            if subject.answer(request) != answer:
                yield Violation(
                    case=describe(request),
                    expected="one answer to one request",
                    got="another answer the second time",
                    hint="supports() may depend on request, options and what is installed, not on calls.",
                )
            if answer.ok and request.device == subject.device:
                for _ in subject.built(request):
                    pass

    suite.check("supports() answers any request, what it accepts is built, what it declines has reasons")(
        capabilities
    )


def well_formed(subject: Subject) -> Iterator[Violation]:
    """What loading does not ask of a plugin, and a user meets."""
    plugin, kind = subject.loaded.plugin, subject.kind
    problems = []
    wrong_name = name_problem(plugin.name)
    if wrong_name is not None:
        problems.append(("name", "a name that can be chosen", wrong_name))
    if plugin.contract != KINDS[kind].contract:
        problems.append(("contract", f"contract {KINDS[kind].contract}", str(plugin.contract)))
    if not plugin.summary.strip() or "\n" in plugin.summary or len(plugin.summary) > 120:
        problems.append(("summary", "one line of 1 to 120 characters", repr(plugin.summary)))
    for case, expected, got in problems:
        yield Violation(case=case, expected=expected, got=got, hint="`dba plugins list` shows it to users.")


def options_round_trip(subject: Subject) -> Iterator[Violation]:
    """options -> plain data -> JSON -> options, for the defaults and for the given ones."""
    defaults = structure_options(subject.loaded, {})
    for case, options in (("defaults", defaults), ("the given options", subject.options)):
        back = contain(lambda each=options: _there_and_back(subject, each))  # type: ignore[misc]
        if isinstance(back, Failure) or back != options:
            yield Violation(
                case=case,
                expected=repr(options),
                got=f"it raised {back}" if isinstance(back, Failure) else repr(back),
                hint="Use fields of plain types (int, float, str, bool, tuple) and store them as given.",
            )
    if isinstance(contain(lambda: hash(defaults)), Failure):
        yield Violation(
            case="defaults",
            expected="options that cannot change: attrs.frozen",
            got=f"{type(defaults).__name__}, which has no hash",
            hint="Decorate the class with @attrs.frozen(kw_only=True).",
        )


def _there_and_back(subject: Subject, options: Any) -> Any:
    text = json.dumps(options_to_dict(options), allow_nan=False)
    return structure_options(subject.loaded, json.loads(text))


def metadata_without_torch(subject: Subject) -> Iterator[Violation]:
    """In a fresh interpreter. A plugin that was given as an object has no metadata."""
    if not subject.installed:
        return
    info = subject.loaded.info
    script = _METADATA_SCRIPT.format(
        path=[entry for entry in sys.path if entry],
        kind=info.kind,
        name=info.qualified,
        device=subject.device,
        module=info.module.partition(":")[0],
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    loaded = done.stdout.split()
    if done.returncode or loaded:
        yield Violation(
            case=f"entry point {info.name} = {info.module}",
            expected="metadata that can be read without importing anything",
            got=f"imported: {', '.join(loaded)}" if not done.returncode else done.stderr.strip()[-300:],
            hint="An auto order, and packages around a plugin, must be light: no torch there.",
        )


def incomplete_reasons(reasons: tuple[Reason, ...], *, case: str) -> Iterator[Violation]:
    for reason in reasons:
        empty = [name for name, value in attrs.asdict(reason).items() if not str(value).strip()]
        if empty:
            yield Violation(
                case=case,
                expected="a reason with subject, got, supported and action",
                got=f"{reason!r}, where {' and '.join(empty)} is empty",
                hint="Say what was got, what is supported, and what the user can do.",
            )
