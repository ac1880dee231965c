"""A run repeated, continued, or run on something else than it was recorded with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from runs_tiny import dba, losses, only_run

from dba_core.config.loading import LoadedConfig, load_config
from dba_core.errors import RecordMismatchError
from dba_core.report import SilentReporter
from dba_core.runs.folder import RunFolder
from dba_core.runs.job import RunInterruptedError, run_job
from dba_core.runs.load import load_run
from dba_core.training.loop import StepFinished

pytestmark = pytest.mark.torch


class StopsAfter(SilentReporter):
    """Presses Ctrl-C after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def event(self, event) -> None:
        if isinstance(event, StepFinished) and event.step == self.step:
            raise KeyboardInterrupt


def tiny_config(tiny) -> LoadedConfig:
    """The configuration of the run that is finished."""
    source = f'data.source="{tiny.args[3]}"'
    return load_config(file=Path(tiny.args[1]), sets=[source], kv_policy=tiny.args[5])


def interrupted(tiny, root: Path, *, after: int) -> RunFolder:
    """The same run, stopped early."""
    config = tiny_config(tiny)
    with pytest.raises(RunInterruptedError, match=f"after step {after} of 8.*resume_job") as caught:
        run_job(config, root=root, reporter=StopsAfter(after))
    assert caught.value.exit_code == 130
    return only_run(root)


def edited(folder: RunFolder, to: Path, *, version: str) -> Path:
    """The recorded configuration with another version of the gate's distribution."""
    data = json.loads(folder.config_file.read_text())
    data["plugins"]["gate"]["record"]["version"] = version
    to.write_text(json.dumps(data))
    return to


def test_a_resolved_configuration_repeats_the_run(tiny, tmp_path: Path) -> None:
    done = dba("run", "--config", str(tiny.folder.config_file), "--out", str(tmp_path), "--json", "--quiet")
    assert done.code == 0
    assert done.err == ""
    again = only_run(tmp_path)
    assert losses(again) == losses(tiny.folder)
    first = json.loads(tiny.folder.summary_json.read_text())
    for key in ("losses", "fidelity", "sample", "model", "kv_memory", "data"):
        assert done.json[key] == first[key], key
    before, after = (json.loads(folder.config_file.read_text()) for folder in (tiny.folder, again))
    for kind in ("summarizer", "gate", "null_token"):
        first, record = (each["plugins"][kind].pop("record") for each in (before, after))
        assert record == {**first, "how": "recorded", "why": f"as recorded ({first['why']})"}
    assert after == before


def test_an_interrupted_run_goes_on_to_the_same_numbers(tiny, tmp_path: Path) -> None:
    folder = interrupted(tiny, tmp_path, after=5)
    assert not folder.summary_json.exists()
    assert losses(folder)[-1][1] == 5
    done = dba("run", "--resume", str(folder.path), "--json")
    assert done.code == 0
    assert only_run(tmp_path) == folder, "in its own folder"
    assert losses(folder) == losses(tiny.folder)
    first = json.loads(tiny.folder.summary_json.read_text())
    assert done.json["losses"] == first["losses"]
    assert done.json["fidelity"] == first["fidelity"]

    folder.summary_json.unlink()
    again = dba("run", "--resume", str(folder.path))
    assert again.code == 0
    assert "The training is complete; evaluating." in again.err
    assert losses(folder) == losses(tiny.folder)
    summary = json.loads(folder.summary_json.read_text())
    assert summary["speed"]["training"] is None
    assert summary["losses"] == first["losses"]


class StopsSampling(SilentReporter):
    """Presses Ctrl-C when sampling begins, and keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def phase(self, text: str, steps: int | None = None) -> None:
        if text.startswith("Sampling"):
            raise KeyboardInterrupt

    def warning(self, text: str) -> None:
        self.warnings.append(text)


def test_ctrl_c_after_training_says_how_to_go_on(tiny, tmp_path: Path) -> None:
    reporter = StopsSampling()
    with pytest.raises(KeyboardInterrupt):
        run_job(tiny_config(tiny), root=tmp_path, reporter=reporter)
    (warning,) = reporter.warnings
    assert f"lies in {only_run(tmp_path).path}" in warning
    assert f"Go on with: resume_job({str(only_run(tmp_path).path)!r})" in warning


@pytest.mark.parametrize(
    "override", [["--set", "training.steps=99"], ["--data", "x.txt"], ["--plugin", "gate=static"]]
)
def test_resume_refuses_to_change_the_run(tiny, override: list[str]) -> None:
    done = dba("run", "--resume", str(tiny.folder.path), *override)
    assert done.code == 2
    assert f"{override[0]} cannot change it" in done.err


def test_another_version_of_a_plugin_exits_5(tiny, tmp_path: Path) -> None:
    config = edited(tiny.folder, tmp_path / "drifted.json", version="99.0")
    args = ["run", "--config", str(config), "--out", str(tmp_path / "runs")]
    done = dba(*args)
    assert done.code == 5
    assert done.out == ""
    assert "gate 'causal' was recorded with dba-attention 99.0" in done.err
    assert "--allow-drift" in done.err
    assert not (tmp_path / "runs").exists()
    assert dba(*args, "--dry-run").code == 5
    allowed = dba(*args, "--allow-drift", "--dry-run", "--json")
    assert allowed.code == 0
    assert "recorded with dba-attention 99.0" in allowed.json["warnings"][0]


def test_another_version_stops_loading_too(tiny, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    copied.mkdir()
    (copied / "checkpoint").symlink_to(tiny.folder.checkpoint, target_is_directory=True)
    edited(tiny.folder, copied / "resolved_config.json", version="99.0")
    with pytest.raises(RecordMismatchError, match=r"dba-attention 99\.0"):
        load_run(copied)
    run = load_run(copied, allow_drift=True)
    assert "dba-attention 99.0" in run.warnings[0]
    assert dba("sample", str(copied), "--prompt", "a").code == 5
    done = dba("sample", str(copied), "--prompt", "a", "--allow-drift", "--json")
    assert done.code == 0
    assert "warning: gate 'causal' was recorded with dba-attention 99.0" in done.err


def test_the_configuration_that_is_loaded_is_the_recorded_one(tiny) -> None:
    run = load_run(tiny.folder.path, "last")
    assert run.step == 8
    assert run.config.to_dict() == json.loads(tiny.folder.config_file.read_text())
    assert run.config.model == run.model.config.as_typed()
    assert not run.model.training
