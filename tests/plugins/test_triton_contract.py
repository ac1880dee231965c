"""The whole contract of decode backends, kept by the interpreted Triton kernels. Takes minutes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

pytestmark = [pytest.mark.torch, pytest.mark.slow]

COMMAND = "from dba_cli.main import main; raise SystemExit(main())"


def test_the_interpreted_kernels_keep_the_contract() -> None:
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "plugins", "check", "triton_2pass", "--quick"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "checks passed" in done.stdout
