"""The contract suites: what every plugin of a kind promises, as checks that its author runs.

In a test: `class TestMine(SummarizerContract): plugin = "mine"`. In code: `check_plugin("gate", "mine")`.
From the shell: `dba plugins check mine`. Imports torch, and not pytest.
"""

from __future__ import annotations

from dba_core.testing.check import (
    SUITES,
    Check,
    CheckpointSourceContract,
    CheckReport,
    CheckResult,
    CommandContract,
    Contract,
    DecodeBackendContract,
    GateContract,
    KvFormatContract,
    NullTokenContract,
    Suite,
    SummarizerContract,
    WeightFormatContract,
    check_plugin,
    run_check,
)
from dba_core.testing.subject import Subject, Violation

__all__ = [
    "SUITES",
    "Check",
    "CheckReport",
    "CheckResult",
    "CheckpointSourceContract",
    "CommandContract",
    "Contract",
    "DecodeBackendContract",
    "GateContract",
    "KvFormatContract",
    "NullTokenContract",
    "Subject",
    "Suite",
    "SummarizerContract",
    "Violation",
    "WeightFormatContract",
    "check_plugin",
    "run_check",
]
