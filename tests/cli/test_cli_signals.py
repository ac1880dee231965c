"""A command that is told to stop says so and ends with 130, whatever it is at; signals stay as they were."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from dba_cli import main as cli

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch):
    """Runs a command that gets a signal while it works."""

    def run(number: signal.Signals) -> int:
        def work(**kwargs: object) -> None:
            os.kill(os.getpid(), number)
            signal.sigtimedwait([], 5)  # the handler runs at the next instruction

        monkeypatch.setattr(cli.cli, "main", work)
        return cli.main(["run"])

    return run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_it_is_interrupted(told, number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    before = signal.signal(number, signal.SIG_DFL)
    try:
        assert told(number) == 130
        assert capsys.readouterr().err == "Interrupted.\n"
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_a_hangup_that_is_ignored_stays_ignored(told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(signal, "sigtimedwait", lambda *args: None)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert told(signal.SIGHUP) == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
