"""Disks that refuse and signals that come early: a clear error, nothing lost, and a way on that works."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
from runs_tiny import dba, losses, only_run
from test_run_again import StopsAfter, tiny_config

from dba_core.errors import CheckpointError, UsageError
from dba_core.report import SilentReporter
from dba_core.runs import plots
from dba_core.runs.folder import FolderError, RunFolder, find_run, new_folder
from dba_core.runs.job import RunInterruptedError, resume_job, run_job
from dba_core.training import checkpoint, metrics_log
from dba_core.training.checkpoint import has_checkpoint
from dba_core.training.loop import StepFinished, TrainingStarted

pytestmark = pytest.mark.torch


class Listener(SilentReporter):
    """Keeps warnings and notes, and does something at one event."""

    def __init__(self, at=None, act=None) -> None:
        self.at, self.act = at, act
        self.said: list[str] = []

    def warning(self, text: str) -> None:
        self.said.append(text)

    note = warning

    def event(self, event) -> None:
        if self.at is not None and self.at(event):
            self.act()


def at_step(number: int):
    return lambda event: isinstance(event, StepFinished) and event.step == number


def full(*given, **named):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def stopped(tiny, root: Path, *, after: int) -> RunFolder:
    with pytest.raises(RunInterruptedError):
        run_job(tiny_config(tiny), root=root, reporter=StopsAfter(after))
    return only_run(root)


def finishes_like(tiny, folder: RunFolder) -> None:
    done = dba("run", "--resume", str(folder.path), "--json")
    assert done.code == 0, done.err
    assert done.json["losses"] == json.loads(tiny.folder.summary_json.read_text())["losses"]


class FullFile:
    """Takes five bytes more."""

    def __init__(self, file) -> None:
        self._file = file
        self.tell, self.truncate, self.close = file.tell, file.truncate, file.close

    def write(self, data: bytes) -> int:
        return self._file.write(data[:5])


def test_a_disk_that_is_full_for_metrics(tiny, tmp_path: Path, monkeypatch) -> None:
    """Half a line is taken back."""
    write = metrics_log.MetricsLog.write

    def filling(log, row) -> None:
        if row["step"] == 6:
            log._file = FullFile(log._file)
        write(log, row)

    with monkeypatch.context() as patch:
        patch.setattr(metrics_log.MetricsLog, "write", filling)
        done = dba("run", *tiny.args, "--out", str(tmp_path))
    assert done.code == 1
    assert "metrics.jsonl could not be written (No space left on device)" in done.err
    folder = only_run(tmp_path)
    assert folder.metrics_file.read_bytes().endswith(b"}\n")
    assert losses(folder)[-1][1] == 5
    finishes_like(tiny, folder)
    assert losses(folder) == losses(tiny.folder)


@pytest.mark.parametrize("first", [True, False], ids=["first", "second"])
def test_a_disk_that_is_full_for_a_checkpoint(tiny, tmp_path: Path, monkeypatch, first: bool) -> None:
    """The advice is what can be done: there is no one before the first."""
    real, saves = checkpoint._write_tensors, []

    def write(directory, name, tensors):
        saves.append(name)
        return real(directory, name, tensors) if not first and len(saves) <= 3 else full()

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_write_tensors", write)
        done = dba("run", *tiny.args, "--out", str(tmp_path))
    assert done.code == 1
    assert "No space left" in done.err
    assert ("there is none before it" in done.err) is first
    assert ("the one before it is whole" in done.err) is not first
    folder = only_run(tmp_path)
    assert len(list(folder.checkpoint.glob("step-*"))) == (0 if first else 1), "nothing half written stays"
    assert f"Go on with: dba run --resume {folder.path}" in done.err
    finishes_like(tiny, folder)


@pytest.mark.parametrize("what", ["plots", "summary"])
def test_a_disk_that_is_full_after_training(tiny, tmp_path: Path, monkeypatch, what: str) -> None:
    with monkeypatch.context() as patch:
        if what == "plots":
            patch.setattr(plots, "save_png", full)
        else:
            real = os.replace
            patch.setattr(
                os, "replace", lambda a, b: full() if Path(b).name == "summary.json" else real(a, b)
            )
        done = dba("run", *tiny.args, "--out", str(tmp_path))
    assert done.code == 1
    folder = only_run(tmp_path)
    assert f"{folder.path} could not be written (No space left on device)" in done.err
    assert not list(folder.path.glob("*.new"))
    finishes_like(tiny, folder)


def test_a_folder_that_vanishes_stops_the_run(tiny, tmp_path: Path) -> None:
    reporter = Listener(at_step(3), lambda: shutil.rmtree(only_run(tmp_path).path))
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl could not be written .*put the folder back"):
        run_job(tiny_config(tiny), root=tmp_path, reporter=reporter)


def test_a_place_that_takes_no_folder_says_so(tmp_path: Path) -> None:
    from datetime import datetime

    (tmp_path / "runs").write_text("a file")
    with pytest.raises(FolderError, match=r"runs.* could not be written .*root="):
        new_folder(tmp_path / "runs", "a", now=datetime(2025, 1, 1))


def test_a_run_goes_on_without_its_metrics(tiny, tmp_path: Path) -> None:
    folder = stopped(tiny, tmp_path, after=5)
    folder.metrics_file.unlink()
    listener = Listener()
    resume_job(folder.path, reporter=listener)
    assert any("metrics.jsonl is gone; the run goes on" in text for text in listener.said)
    assert losses(folder) == [row for row in losses(tiny.folder) if row[1] > 5]
    folder.metrics_file.unlink()
    finishes_like_without_curve = dba("run", "--resume", str(folder.path), "--json")
    assert finishes_like_without_curve.code == 0
    assert finishes_like_without_curve.json["plots"]["loss"] == "left out: nothing was logged"


def test_what_a_killed_process_left_is_cleared_at_a_resume(tiny, tmp_path: Path) -> None:
    folder = stopped(tiny, tmp_path, after=5)
    (dead := folder.checkpoint / "step-00000006-dead0000").mkdir()
    (dead / "model.safetensors").write_bytes(b"half")
    seen = []
    reporter = Listener(lambda event: isinstance(event, TrainingStarted), lambda: seen.append(dead.exists()))
    resume_job(folder.path, reporter=reporter)
    assert seen == [False]


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.usefixtures("default_signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_before_the_first_step_ends_the_run_at_once(tiny, tmp_path: Path, name: str) -> None:
    listener = Listener(
        lambda event: isinstance(event, TrainingStarted),
        lambda: os.kill(os.getpid(), getattr(signal, name)),
    )
    steps = []
    heard = listener.event

    def event(event) -> None:
        steps.extend([event.step] if isinstance(event, StepFinished) else [])
        heard(event)

    listener.event = event
    with pytest.raises(KeyboardInterrupt):
        run_job(tiny_config(tiny), root=tmp_path, reporter=listener)
    folder = only_run(tmp_path)
    assert steps == []
    assert not has_checkpoint(folder.checkpoint, "last")
    assert any("No checkpoint was saved yet" in text and "resume_job(" in text for text in listener.said)
    with pytest.raises(UsageError, match=r"has no checkpoint 'best' yet"):
        find_run(tmp_path / "latest", weights="best")
    if name == "SIGINT":
        finishes_like(tiny, folder)


def test_latest_passes_over_what_has_no_weights(tiny, tmp_path: Path) -> None:
    shutil.copytree(tiny.folder.path, tmp_path / "good")
    for number, name in enumerate(("unread", "untrained")):
        (tmp_path / name).mkdir()
        shutil.copy(tiny.folder.config_file, tmp_path / name)
        os.utime(tmp_path / name / "resolved_config.json", (2**31 + number, 2**31 + number))
    (tmp_path / "unread" / "checkpoint").mkdir()
    (tmp_path / "unread" / "checkpoint" / "best").write_text("{}")
    (tmp_path / "unread" / "resolved_config.json").write_text('{"seed": null}')
    os.utime(tmp_path / "unread" / "resolved_config.json", (2**31, 2**31))
    assert find_run(tmp_path / "latest").path.name == "untrained", "to resume, say"
    assert find_run(tmp_path / "latest", weights="best").path.name == "good"
    done = dba("sample", str(tmp_path / "latest"), "--prompt", "a")
    assert done.code == 0, done.err
    shutil.rmtree(tmp_path / "good")
    done = dba("eval", str(tmp_path / "latest"))
    assert done.code == 2
    assert "untrained (it has no checkpoint 'best' yet)" in done.err
    assert "unread (its configuration cannot be read: seed" in done.err


def test_a_summarizer_that_no_step_would_use_is_not_built(tiny) -> None:
    """The context of 16 is below the threshold of 3072."""
    summary = json.loads(tiny.folder.summary_json.read_text())
    assert summary["plugins"]["summarizer"]["not_built"] == (
        "the context of 16 is below the threshold of 3072 tokens"
    )
    assert summary["plugins"]["gate"]["not_built"] is None
    text = tiny.folder.summary_md.read_text()
    assert "| Summarizer | not built: the context of 16 is below the threshold of 3072 tokens" in text
    sets = ("--set", "model.train_long_seq.threshold=8")
    built = dba("run", *tiny.args, *sets, "--dry-run", "--json").json
    assert built["plugins"]["summarizer"]["not_built"] is None


def test_the_two_held_out_losses_have_two_names(tiny) -> None:
    """128 tokens at the evaluations, all of the held-out text in the summary."""
    progress = [line for line in tiny.done.err.splitlines() if line.startswith("step ")]
    assert all("over the first 128 held-out tokens" in line for line in progress)
    total = json.loads(tiny.folder.summary_json.read_text())["data"]["held_out_tokens"] - 1
    assert total > 128
    assert f"over {total:,} tokens (best weights" in tiny.folder.summary_md.read_text()
