"""The contract of decode backends, kept by the interpreted Triton kernels. Takes minutes.

But for the two comparisons with float64: triton_decode_interpreted.py makes them over its own, wider cases.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.torch,
    pytest.mark.needs("triton"),
    pytest.mark.slow,
]


PROGRAM = """
import triton_interpreter
from dba_core.testing import SUITES, check_plugin

kind = "decode_backend"
elsewhere = ("equals_float64", "equals_when_long")
names = tuple(check.name for check in SUITES[kind].checks if check.name not in elsewhere)
report = check_plugin(kind, "triton_2pass", quick=True, only=names)
for result in report.results:
    print(result)
assert len(report.results) == len(names) > 10
assert report.ok
"""


def test_the_interpreted_kernels_keep_the_contract() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=Path(__file__).parent,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
