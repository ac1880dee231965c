"""The suite of each kind, imported when it is asked for, and the ways to run one: `check_plugin`, and classes
that pytest collects: subclass one, name the plugin, done.

    class TestMine(SummarizerContract):
        plugin = "mine"

Every check is a method `test_NAME` of the class. pytest itself is not imported.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

from dba_core.contracts import Kind
from dba_core.errors import UsageError
from dba_core.kinds import KINDS
from dba_core.registry import Registry
from dba_core.testing.check import Check, CheckReport, Suite, run_check, run_suite
from dba_core.testing.every_kind import common_checks
from dba_core.testing.subject import Subject


class _Suites(Mapping[Kind, Suite]):
    """By kind, in the order of the table of kinds."""

    def __getitem__(self, kind: Kind) -> Suite:
        return _suite(KINDS[kind].suite)

    def __iter__(self) -> Iterator[Kind]:
        return iter(KINDS)

    def __len__(self) -> int:
        return len(KINDS)


@functools.cache
def _suite(reference: str) -> Suite:
    module, _, name = reference.partition(":")
    suite: Suite = getattr(importlib.import_module(module), name)
    common_checks(suite)
    return suite


SUITES: Mapping[Kind, Suite] = _Suites()


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
    subject = Subject.of(kind, plugin, options=options, registry=registry, device=device, quick=quick)
    return run_suite(SUITES[kind], subject, only=only)


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
        return Subject.of(self.kind, self.plugin, options=self.options, device=self.device, quick=self.quick)


class SummarizerContract(Contract, kind="summarizer"):
    """What every memory summarizer promises."""


class GateContract(Contract, kind="gate"):
    """What every gate promises."""


class NullTokenContract(Contract, kind="null_token"):
    """What every null token promises."""


class KvFormatContract(Contract, kind="kv_format"):
    """What every cache format promises."""


class CheckpointSourceContract(Contract, kind="checkpoint_source"):
    """What every checkpoint source promises."""


class DecodeBackendContract(Contract, kind="decode_backend"):
    """What every decode backend promises."""


class CommandContract(Contract, kind="command"):
    """What every command promises."""
