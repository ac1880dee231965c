"""Ctrl-C and SIGTERM: the step is finished, the run saved, the handlers put back."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import pytest
from tiny_run import Trained, events_of, run, tiny_config

from dba_core.training.checkpoint import has_checkpoint, read_checkpoint
from dba_core.training.loop import CheckpointSaved, Interrupted, StepFinished, StopRequest

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("default_signals")]


CONFIG = tiny_config(steps=8, eval_every=8)


def signal_at(step: int, number: signal.Signals, *, times: int = 1):
    def listen(event: object) -> None:
        if isinstance(event, StepFinished) and event.step == step:
            for _ in range(times):
                os.kill(os.getpid(), number)

    return listen


STOPS = [signal.SIGINT, signal.SIGTERM, *([] if sys.platform == "win32" else [signal.SIGHUP])]


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_ends_the_run_with_a_checkpoint(tmp_path: Path, number: signal.Signals) -> None:
    before = {each: signal.getsignal(each) for each in STOPS}
    trained = run(tmp_path, CONFIG, on_event=signal_at(3, number))
    assert trained.result.interrupted
    assert trained.result.progress.step == 3
    assert trained.result.progress.best_loss is None
    assert trained.result.progress.eval_loss is None
    assert [type(event) for event in trained.events[-2:]] == [Interrupted, CheckpointSaved]
    assert read_checkpoint(tmp_path / "checkpoint", "last").state["step"] == 3
    assert not has_checkpoint(tmp_path / "checkpoint", "best")
    assert {each: signal.getsignal(each) for each in before} == before


def test_the_last_step_is_no_interruption(tmp_path: Path) -> None:
    trained = run(tmp_path, CONFIG, on_event=signal_at(8, signal.SIGINT))
    assert not trained.result.interrupted
    assert trained.result.progress.eval_loss is not None
    assert not events_of(trained, Interrupted)


def test_a_second_ctrl_c_acts_at_once(tmp_path: Path) -> None:
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)  # torchrun and cluster managers send one of each
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def fail_in_training(mine: object) -> None:
    with StopRequest():
        assert signal.getsignal(signal.SIGTERM) is not mine
        raise RuntimeError("in training")


def test_a_handler_of_the_caller_comes_back_after_an_error() -> None:
    def mine(number: int, frame: object) -> None:
        raise AssertionError("not called here")

    previous = signal.signal(signal.SIGTERM, mine)
    try:
        with pytest.raises(RuntimeError, match="in training"):
            fail_in_training(mine)
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_training_off_the_main_thread_leaves_the_handlers_alone(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    done: list[Trained] = []

    def work() -> None:
        def same(event: object) -> None:
            assert signal.getsignal(signal.SIGINT) is before
            if isinstance(event, StepFinished) and event.step == 2:
                raise KeyboardInterrupt

        done.append(run(tmp_path, CONFIG, on_event=same))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done[0].result.interrupted
    assert done[0].result.progress.step == 2


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_signal_that_nohup_ignores_stays_ignored(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        trained = run(tmp_path, CONFIG, on_event=signal_at(3, signal.SIGHUP))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert not trained.result.interrupted


def test_a_listener_whose_terminal_is_gone_costs_no_checkpoint(tmp_path: Path) -> None:
    """What a hangup does: the signal, and then nobody to write to."""

    def listen(event: object) -> None:
        signal_at(3, signal.SIGTERM)(event)
        if isinstance(event, Interrupted):
            raise OSError("Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        run(tmp_path, CONFIG, on_event=listen)
    assert read_checkpoint(tmp_path / "checkpoint", "last").step == 3


def test_the_clock_asks_for_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes four minutes here: every third one is saved, and no number changes."""
    now = [0.0]
    monkeypatch.setattr("dba_core.training.loop.time.monotonic", lambda: now[0])

    def listen(event: object) -> None:
        if isinstance(event, StepFinished):
            now[0] += 240.0

    config = tiny_config(steps=10, eval_every=10)
    timed = run(tmp_path / "timed", config, on_event=listen)
    assert [event.step for event in events_of(timed, CheckpointSaved)] == [4, 8, 10]
    never = tiny_config(steps=10, eval_every=10, checkpoint_minutes=0.0)
    plain = run(tmp_path / "plain", never, on_event=listen)
    assert [event.step for event in events_of(plain, CheckpointSaved)] == [10]
    assert timed.result.progress.eval_loss == plain.result.progress.eval_loss
    run(tmp_path / "early", tiny_config(steps=10, eval_every=10), on_event=signal_at(3, signal.SIGINT))
    resumed = run(tmp_path / "early", never, resume=True)
    assert resumed.result.progress.eval_loss == plain.result.progress.eval_loss
