"""The suite of each kind."""

from __future__ import annotations

from dba_core.contracts import Kind
from dba_core.testing.check import Suite
from dba_core.testing.common import common_checks
from dba_core.testing.decode_long import DECODE
from dba_core.testing.gate import GATE
from dba_core.testing.null_token import NULL_TOKEN
from dba_core.testing.summarizer import SUMMARIZER

SUITES: dict[Kind, Suite] = {suite.kind: suite for suite in (SUMMARIZER, GATE, NULL_TOKEN, DECODE)}
for _suite in SUITES.values():
    common_checks(_suite)
