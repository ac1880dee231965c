"""`dba(...)` runs a command in this process, in an empty folder; `dba_process` in a fresh interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from dba_cli.main import main


@attrs.frozen
class Done:
    """What a command left: its exit code and its two streams."""

    code: int
    out: str
    err: str


Dba = Callable[..., Done]


@pytest.fixture
def dba(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Dba:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    for name in [name for name in os.environ if name.startswith(("DBA_", "NO_COLOR", "FORCE_COLOR"))]:
        monkeypatch.delenv(name)

    def call(*args: str) -> Done:
        capsys.readouterr()
        code = main(list(args))
        streams = capsys.readouterr()
        return Done(code, streams.out, streams.err)

    return call


@pytest.fixture
def dba_process(tmp_path: Path) -> Dba:
    def call(*args: str, code: str = "", **environment: str) -> Done:
        """`dba ARGS`, or the Python text `code`."""
        command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "dba_cli", *args]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return call
