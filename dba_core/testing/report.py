"""What the contract suites answer, as data: violations, one result per check, one report per plugin.

Made by `testing.check`; rendered by `dba plugins check` and by the pytest classes.
"""

from __future__ import annotations

from typing import Any

import attrs

from dba_core.contracts import Kind


@attrs.frozen(kw_only=True)
class Violation:
    """A promise that a plugin broke. case: the input; hint: where to look; check: filled in by the run."""

    case: str
    expected: str
    got: str
    hint: str
    check: str = ""

    def __str__(self) -> str:
        return f"{self.check} [{self.case}]: expected {self.expected}; got {self.got}. {self.hint}"


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

    @property
    def n_refused(self) -> int:
        """Cases that the plugin declined with reasons; the most that one reason was given."""
        return max(self.refused.values(), default=0)


@attrs.frozen(kw_only=True)
class Report:
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
