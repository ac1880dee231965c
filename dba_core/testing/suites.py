"""The suite of each kind."""

from __future__ import annotations

from dba_core.contracts import Kind
from dba_core.testing.check import Suite
from dba_core.testing.common import common_checks
from dba_core.testing.decode_safety import DECODE

SUITES: dict[Kind, Suite] = {"decode_backend": DECODE}
for _suite in SUITES.values():
    common_checks(_suite)
