"""`dba bench startup` and `dba bench train` on tiny models."""

from __future__ import annotations

import json

import pytest

from dba_cli.main import main
from dba_core.report import SilentReporter
from dba_plugins.bench.startup import StartupBench, run

pytestmark = pytest.mark.torch


def test_startup_names_the_backend_that_ran() -> None:
    report = run(StartupBench(repeats=2), SilentReporter())
    names = [row["name"] for row in report.rows]
    assert names[:2] == ["python -c pass", "import dba_core"]
    assert "kernels on the disk" in names[-1]
    assert all(row["seconds"] > 0 for row in report.rows)


def test_train_takes_a_configuration_and_knows_its_layouts(capsys: pytest.CaptureFixture[str]) -> None:
    tiny = ["--set", "model.d_model=16", "--set", "model.n_layers=1", "--set", "model.context=8"]
    tiny += ["--set", "model.attention.n_heads=2", "--set", "training.batch_size=2", "--set", "device=cpu"]
    assert main(["bench", "train", *tiny, "--mode", "decoupled", "--repeats", "2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["name"] for row in rows] == ["plain GPT", "decoupled"]
    assert rows[0]["ratio"] == 1.0
    assert main(["bench", "train", "--mode", "decupled"]) == 2
    assert "Did you mean 'decoupled'" in capsys.readouterr().err
