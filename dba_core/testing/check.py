"""A check: a name, what it proves, and a function that yields violations. A suite: the checks of one kind.

    @SUITE.check("the null token counts exactly once")
    def null_token_once(subject: Subject) -> Iterator[Violation]: ...

Whatever the plugin raises becomes a violation; a check whose every case was declined fails too, because it
proved nothing. Called by `check_plugin` and by the pytest classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import attrs
import torch

from dba_core.contracts import Kind
from dba_core.errors import UsageError, unknown
from dba_core.registry import Registry
from dba_core.registry.contain import Failure, contain, kept_surroundings
from dba_core.testing.report import CheckResult, Report, Violation
from dba_core.testing.subject import BreachError, Subject, Tally

CheckFunction = Callable[[Subject], Iterator[Violation]]
#: A check stops after so many violations: more of the same help nobody.
MAX_VIOLATIONS = 3


@attrs.frozen(kw_only=True)
class Check:
    """One promise of a contract."""

    name: str
    proves: str
    run: CheckFunction


@attrs.frozen
class Suite:
    """The checks of one kind, in the order in which they run."""

    kind: Kind
    checks: list[Check] = attrs.field(factory=list)

    def check(self, proves: str) -> Callable[[CheckFunction], CheckFunction]:
        """Adds the function under its own name."""

        def add(function: CheckFunction) -> CheckFunction:
            self.checks.append(Check(name=function.__name__, proves=proves, run=function))
            return function

        return add

    def find(self, name: str) -> Check:
        """Raises UsageError for a name that the suite lacks."""
        for check in self.checks:
            if check.name == name:
                return check
        names = [check.name for check in self.checks]
        raise UsageError(unknown(f"check of kind {self.kind}:", name, names))


def run_check(check: Check, subject: Subject) -> CheckResult:
    """Run one check under a fixed random state, which is restored. What the plugin prints goes to stderr."""
    mine = attrs.evolve(subject, tally=Tally())
    with torch.random.fork_rng(devices=[]), kept_surroundings():
        torch.manual_seed(0)
        found = contain(lambda: list(islice(_violations(check, mine), MAX_VIOLATIONS)))
    if isinstance(found, Failure):
        found = [
            Violation(
                case="while the check ran",
                expected="no exception",
                got=str(found),
                hint="Decline in supports() what cannot run, or repair it.",
            )
        ]
    if not found and mine.tally.declined and not mine.tally.cases:
        found = [_nothing_ran(mine.tally)]
    return CheckResult(
        name=check.name,
        proves=check.proves,
        cases=mine.tally.cases,
        refused=dict(mine.tally.refused),
        violations=tuple(attrs.evolve(each, check=check.name) for each in found),
    )


def run_suite(suite: Suite, subject: Subject, *, only: tuple[str, ...] = ()) -> Report:
    """Every check of the suite, or those named in `only`."""
    checks = [suite.find(name) for name in only] if only else suite.checks
    info = subject.loaded.info
    return Report(
        kind=info.kind,
        name=info.name,
        distribution=info.distribution,
        version=info.version,
        device=subject.device,
        quick=subject.quick,
        results=tuple(run_check(check, subject) for check in checks),
    )


def check_plugin(
    kind: Kind,
    plugin: Any,
    *,
    options: Mapping[str, Any] | None = None,
    registry: Registry | None = None,
    device: str = "cpu",
    quick: bool = False,
    only: tuple[str, ...] = (),
) -> Report:
    """Run the contract of `kind` on a plugin: its name, or the object that its hook returns.

    Raises PluginError for a plugin that is missing or lacks the form of one, ConfigError for its options,
    UsageError for an unknown check in `only`. Anything else that is wrong is in the report.
    """
    from dba_core.testing.suites import SUITES

    subject = Subject.of(kind, plugin, options=options, registry=registry, device=device, quick=quick)
    return run_suite(SUITES[kind], subject, only=only)


def _violations(check: Check, subject: Subject) -> Iterator[Violation]:
    try:
        yield from check.run(subject)
    except BreachError as breach:
        yield breach.violation


def _nothing_ran(tally: Tally) -> Violation:
    return Violation(
        case="all",
        expected="a case that the plugin supports",
        got=f"all {tally.declined} were declined: {'; '.join(list(tally.refused)[:3])}",
        hint="Run the check where the plugin can run (another device?), or let supports() accept what works.",
    )
