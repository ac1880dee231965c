"""Weights of a run that did not finish, and weights that give no loss, are said to be that."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from runs_tiny import dba

from dba_core.errors import CheckpointError, UsageError
from dba_core.runs.evaluate import evaluate_run
from dba_core.runs.load import load_run

pytestmark = pytest.mark.torch


def test_weights_of_a_run_that_did_not_finish(tiny, tmp_path: Path) -> None:
    assert load_run(tiny.folder.path).warnings == ()
    copy = tmp_path / "copy"
    shutil.copytree(tiny.folder.path, copy)
    (copy / "summary.json").unlink()
    (warning,) = load_run(copy).warnings
    assert warning.startswith(f"{copy} did not finish; these are the weights of step 8, and it has 8.")
    done = dba("sample", str(copy), "--prompt", "green", "--max-new-tokens", "2", "--json")
    assert done.code == 0
    assert "did not finish" in done.err
    assert json.loads(done.out)["checkpoint_step"] == 8


def test_a_loss_without_a_perplexity_is_an_error(tiny) -> None:
    run = load_run(tiny.folder.path)
    with torch.no_grad():
        run.model.ln_f.weight.mul_(1e6)  # finite logits, and a loss of thousands of nats
    with pytest.raises(CheckpointError, match=r"the loss of the model is \S+ nats per token: its numbers"):
        evaluate_run(run)


@pytest.mark.parametrize("wrong", [3, None, ["a"], b"latest"])
def test_what_is_no_run_is_named(wrong: object) -> None:
    with pytest.raises(UsageError, match=r"the run is .*; give its folder, a part of its name, or 'latest'"):
        load_run(wrong)
