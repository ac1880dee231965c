"""A check: a name, what it proves, and a function that yields violations. A suite: the checks of one kind,
and the ways to run it: `check_plugin`, and classes that pytest collects.

    @SUITE.check("the null token counts exactly once", hint="It is one more key of every row.")
    def null_token_once(subject: Subject) -> Iterator[Violation]: ...

    class TestMine(SummarizerContract):
        plugin = "mine"

Whatever the plugin raises becomes a violation; a check whose every case was declined fails too, because it
proved nothing. Every check is a method `test_NAME` of the class; pytest itself is not imported.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, ClassVar, TypeVar

import attrs
import torch

from dba_core.contracts import Kind
from dba_core.errors import UsageError, unknown
from dba_core.kinds import KINDS
from dba_core.registry import Registry
from dba_core.registry.contain import Failure, contain, kept_surroundings
from dba_core.testing.every_kind import (
    capabilities,
    metadata_without_torch,
    options_round_trip,
    well_formed,
)
from dba_core.testing.subject import BreachError, Subject, Tally, Violation

CheckFunction = Callable[[Subject], Iterator[Violation]]
F = TypeVar("F", bound=Callable[..., Iterator[Violation]])
#: A check stops after so many violations: more of the same help nobody.
MAX_VIOLATIONS = 3


@attrs.frozen(kw_only=True)
class Check:
    """One promise of a contract. hint: where to look, for a violation that has none of its own."""

    name: str
    proves: str
    run: CheckFunction
    hint: str = ""


_EVERY_KIND = (
    Check(
        name="well_formed",
        proves="name, contract number and one-line summary are those of a plugin",
        run=well_formed,
        hint="`dba plugins list` shows it to users.",
    ),
    Check(
        name="options_round_trip",
        proves="options survive the way to plain data, JSON and back",
        run=options_round_trip,
    ),
    Check(
        name="metadata_without_torch",
        proves="finding the plugin, and the order of auto, import neither torch nor the plugin",
        run=metadata_without_torch,
        hint="An auto order, and packages around a plugin, must be light: no torch there.",
    ),
)


@attrs.frozen
class Suite:
    """The checks of one kind, in the order in which they run."""

    kind: Kind
    checks: list[Check] = attrs.field(factory=list)

    def check(
        self,
        proves: str,
        *,
        name: str = "",
        hint: str = "",
        over: Callable[[Subject], Iterator[Any]] | None = None,
    ) -> Callable[[F], F]:
        """Adds the function, under its own name where no other is given. over: the cases, with each of which
        it is called; without them once.
        """

        def add(function: F) -> F:
            def run(subject: Subject) -> Iterator[Violation]:
                for case in [()] if over is None else ((case,) for case in over(subject)):
                    yield from function(subject, *case)

            self.checks.append(Check(name=name or function.__name__, proves=proves, run=run, hint=hint))
            return function

        return add

    def capabilities(self, requests: Callable[[Subject], Iterator[Any]]) -> None:
        """Adds the check that the plugin tells the truth about these requests, as a decorator of them."""
        proves = "supports() answers any request, what it accepts is built, what it declines has reasons"
        self.check(proves, over=requests)(capabilities)

    def find(self, name: str) -> Check:
        """Raises UsageError for a name that the suite lacks."""
        for check in self.checks:
            if check.name == name:
                return check
        names = [check.name for check in self.checks]
        raise UsageError(unknown(f"check of kind {self.kind}:", name, names))


class _Suites(dict[Kind, Suite]):
    """By kind, each imported when it is asked for first."""

    def __missing__(self, kind: Kind) -> Suite:
        module, _, name = KINDS[kind].suite.partition(":")
        suite: Suite = getattr(importlib.import_module(module), name)
        suite.checks.extend(_EVERY_KIND)
        return self.setdefault(kind, suite)


SUITES: Mapping[Kind, Suite] = _Suites()


@attrs.frozen(kw_only=True)
class CheckResult:
    """One check of one plugin. cases: what it accepted and was tried on. refused: the plugin's own reason for
    each case that its `supports()` declined, with how often it was given.
    """

    name: str
    proves: str
    cases: int
    refused: dict[str, int]
    violations: tuple[Violation, ...]

    @property
    def ok(self) -> bool:
        return not self.violations


@attrs.frozen(kw_only=True)
class CheckReport:
    """All checks of one plugin, on one device. quick: the small grids were used."""

    kind: Kind
    name: str
    distribution: str
    version: str
    device: str
    quick: bool
    results: tuple[CheckResult, ...]

    @property
    def ok(self) -> bool:
        return all(result.ok for result in self.results)

    @property
    def violations(self) -> tuple[Violation, ...]:
        return tuple(violation for result in self.results for violation in result.violations)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, for JSON."""
        return {"ok": self.ok, **attrs.asdict(self)}


def run_check(check: Check, subject: Subject) -> CheckResult:
    """Run one check under a fixed random state, which is restored. What the plugin prints goes to stderr."""
    mine = attrs.evolve(subject, tally=Tally())
    tally = mine.tally
    with torch.random.fork_rng(devices=[]), kept_surroundings():
        torch.manual_seed(0)
        found = contain(lambda: list(islice(_violations(check, mine), MAX_VIOLATIONS)))
    if isinstance(found, Failure):
        hint = "Decline in supports() what cannot run, or repair it."
        found = [Violation("while the check ran", "no exception", str(found), hint)]
    if not found and tally.declined and not tally.cases:
        got = f"all {tally.declined} were declined: {'; '.join(list(tally.refused)[:3])}"
        hint = (
            "Run the check where the plugin can run (another device?), or let supports() accept what works."
        )
        found = [Violation("all", "a case that the plugin supports", got, hint)]
    return CheckResult(
        name=check.name,
        proves=check.proves,
        cases=tally.cases,
        refused=dict(tally.refused),
        violations=tuple(attrs.evolve(v, check=check.name, hint=v.hint or check.hint) for v in found),
    )


def _violations(check: Check, subject: Subject) -> Iterator[Violation]:
    try:
        yield from check.run(subject)
    except BreachError as breach:
        yield breach.violation


def check_plugin(
    kind: Kind,
    plugin: Any,
    *,
    options: Mapping[str, Any] | None = None,
    registry: Registry | None = None,
    device: str = "cpu",
    quick: bool = False,
    only: tuple[str, ...] = (),
) -> CheckReport:
    """Run the contract of `kind` on a plugin: its name, or the object that its hook returns.

    Raises PluginError for a plugin that is missing or lacks the form of one, ConfigError for its options,
    UsageError for an unknown check in `only`. Anything else that is wrong is in the report.
    """
    registry = Registry.default() if registry is None else registry
    subject = Subject.of(kind, plugin, options=options or {}, registry=registry, device=device, quick=quick)
    suite, info = SUITES[kind], subject.loaded.info
    checks = [suite.find(name) for name in only] if only else suite.checks
    return CheckReport(
        kind=kind,
        name=info.name,
        distribution=info.distribution,
        version=info.version,
        device=device,
        quick=quick,
        results=tuple(run_check(check, subject) for check in checks),
    )


def _method(check: Check) -> Callable[[Any], None]:
    def test(self: Any) -> None:
        result = run_check(check, self.subject())
        if result.violations:
            raise AssertionError("\n".join(str(violation) for violation in result.violations))

    test.__name__ = f"test_{check.name}"
    test.__doc__ = check.proves
    return test


class Contract:
    """The suite of one kind: `class TestMine(Contract, kind="gate")`, or a subclass of one of those below.

    plugin: a name, or the object that the hook returns. options: the plugin's own. device: where to test.
    quick: the small grids. Raises UsageError where a subclass names no plugin.
    """

    kind: ClassVar[Kind]
    plugin: ClassVar[Any] = None
    options: ClassVar[Mapping[str, Any]] = {}
    device: ClassVar[str] = "cpu"
    quick: ClassVar[bool] = False

    def __init_subclass__(cls, kind: Kind | None = None) -> None:
        super().__init_subclass__()
        if kind is not None:
            cls.kind = kind
            for check in SUITES[kind].checks:
                setattr(cls, f"test_{check.name}", _method(check))

    def subject(self) -> Subject:
        """The plugin, loaded."""
        if self.plugin is None:
            raise UsageError(f'{type(self).__name__} names no plugin; write `plugin = "its name"` in it')
        return Subject.of(
            self.kind,
            self.plugin,
            options=self.options,
            registry=Registry.default(),
            device=self.device,
            quick=self.quick,
        )


class SummarizerContract(Contract, kind="summarizer"):
    """What every memory summarizer promises."""


class GateContract(Contract, kind="gate"):
    """What every gate promises."""


class NullTokenContract(Contract, kind="null_token"):
    """What every null token promises."""


class KvFormatContract(Contract, kind="kv_format"):
    """What every cache format promises."""


class WeightFormatContract(Contract, kind="weight_format"):
    """What every weight format promises."""


class CheckpointSourceContract(Contract, kind="checkpoint_source"):
    """What every checkpoint source promises."""


class DecodeBackendContract(Contract, kind="decode_backend"):
    """What every decode backend promises."""


class CommandContract(Contract, kind="command"):
    """What every command promises."""
