"""The suites as classes that pytest collects: subclass one, name the plugin, done.

    class TestMine(SummarizerContract):
        plugin = "mine"

Every check is a method `test_NAME` of the class. pytest itself is not imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from dba_core.contracts import Kind
from dba_core.errors import UsageError
from dba_core.testing.check import Check, run_check
from dba_core.testing.subject import Subject
from dba_core.testing.suites import SUITES


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


class CheckpointSourceContract(Contract, kind="checkpoint_source"):
    """What every checkpoint source promises."""


class DecodeBackendContract(Contract, kind="decode_backend"):
    """What every decode backend promises."""


class CommandContract(Contract, kind="command"):
    """What every command promises."""
