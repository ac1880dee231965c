"""The contract suites: what every plugin of a kind promises, as checks that its author runs.

In a test: `class TestMine(SummarizerContract): plugin = "mine"`. In code: `check_plugin("gate", "mine")`.
From the shell: `dba plugins check mine`. Imports torch, and not pytest.
"""

from __future__ import annotations

from dba_core.testing.check import Check, Suite, check_plugin, run_check
from dba_core.testing.pytest_classes import (
    CheckpointSourceContract,
    CommandContract,
    Contract,
    DecodeBackendContract,
    GateContract,
    NullTokenContract,
    SummarizerContract,
)
from dba_core.testing.report import CheckResult, Report, Violation
from dba_core.testing.subject import Subject
from dba_core.testing.suites import SUITES

__all__ = [
    "SUITES",
    "Check",
    "CheckResult",
    "CheckpointSourceContract",
    "CommandContract",
    "Contract",
    "DecodeBackendContract",
    "GateContract",
    "NullTokenContract",
    "Report",
    "Subject",
    "Suite",
    "SummarizerContract",
    "Violation",
    "check_plugin",
    "run_check",
]
