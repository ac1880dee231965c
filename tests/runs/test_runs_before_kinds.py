"""What lies on users' disks from before the table of kinds: a run folder and a plugin of contract 1.

`before_kinds/` was written by the version before: `dba run` with gate `causal`, the summarizer named in its
former place, four steps; and `dba plugins new decode_backend old-decode`, as it came.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest
from runs_tiny import dba

from dba_core import Registry, load_run
from dba_core.runs.evaluate import evaluate_run
from dba_core.testing import check_plugin

pytestmark = pytest.mark.torch

BEFORE = Path(__file__).parent / "before_kinds"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(BEFORE, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


def test_the_run_loads_and_is_evaluated_to_the_figure_that_it_recorded(folder: Path) -> None:
    run = load_run(folder)
    assert run.config.plugins.of("summarizer").name == "linear"
    record = run.config.plugins.of("gate").record
    assert record is not None
    assert (record.contract, record.how) == (1, "named")
    recorded = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["losses"]["held_out"]
    assert evaluate_run(run).held_out.loss == pytest.approx(recorded, rel=1e-6)


def test_the_record_trains_to_the_same_losses_again(folder: Path) -> None:
    assert dba("run", "--config", folder / "resolved_config.json", "--out", "again").code == 0
    (again,) = Path("again").iterdir()

    def losses(run: Path) -> list[float]:
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [line["loss"] for line in map(json.loads, lines) if "loss" in line]

    assert len(losses(folder)) > 4
    assert losses(again) == pytest.approx(losses(folder), rel=1e-6)


def old_plugin() -> ModuleType:
    spec = importlib.util.spec_from_file_location("old_decode", BEFORE / "old_decode.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_plugin_that_was_written_before_keeps_the_contract() -> None:
    registry = Registry()
    registry.register("decode_backend", old_plugin().dba_decode_backend())
    report = check_plugin("decode_backend", "old-decode", quick=True, registry=registry)
    failed = [result.name for result in report.results if result.violations]
    assert failed == ["metadata_without_torch"]  # it was not installed, only loaded
    assert len(report.results) > 20
